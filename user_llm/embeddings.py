"""Users as a run keeps them: what its encoder has made of their events, which answers anything about them later."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from user_llm.data.timelines import Catalogue
from user_llm.errors import UserError


@dataclasses.dataclass(frozen=True)
class UserEmbeddings:
    """What a run needs of users to answer about them.

    Attributes:
      items: int32 `[B, S]`, the items of the events that were read, oldest first, left-padded with 0: no answers.
      embeddings: float `[B, N, U]`, what the LLM reads (of a Perceiver: the latents), zero where `mask` is False.
      mask: bool `[B, N]`.
      query: float `[B, Q]`, what the encoder alone asks for, where answers are mixed with its; None: not kept.
      encoder, catalogue: fingerprints of what made them. Another encoder's embeddings mean nothing to a run.
    """

    items: np.ndarray
    embeddings: np.ndarray
    mask: np.ndarray
    query: np.ndarray | None
    encoder: str
    catalogue: str

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, users: slice | int | np.ndarray | Sequence[int]) -> "UserEmbeddings":
        """Some of the users: a slice, numbers, one number, or which of all, bool `[B]`."""
        chosen = users
        if not isinstance(users, slice):
            chosen = np.atleast_1d(np.asarray(users))
            chosen = chosen if chosen.dtype == bool else chosen.astype(np.int64)
        return self._with({name: values[chosen] for name, values in self._columns().items()})

    @classmethod
    def join(cls, parts: "Sequence[UserEmbeddings]") -> "UserEmbeddings":
        """The users of all parts, in order.

        Raises:
          UserError: there are none, or they are of several runs.
        """
        if not parts:
            raise UserError("there are no users to join")
        first = parts[0]
        for part in parts:
            part.check(first.encoder, first.catalogue)
        names = [name for name in first._columns() if all(name in part._columns() for part in parts)]
        columns = {name: np.concatenate([part._columns()[name] for part in parts]) for name in names}
        return first._with({"query": None, **columns})

    def check(self, encoder: str, catalogue: str) -> None:
        """Raises UserError where they were made by another encoder, or of other items."""
        for what, own, wanted in (("encoder", self.encoder, encoder), ("catalogue", self.catalogue, catalogue)):
            if own != wanted:
                raise UserError(
                    f"these embeddings were made with another {what} ({own[:12]}, here it is {wanted[:12]}): encode "
                    "the users' events anew."
                )

    def batch(self) -> dict[str, np.ndarray]:
        """As models are given them (`evaluation/users.py`)."""
        columns = self._columns()
        return {"history/item": columns.pop("items"), **{f"user/{name}": values for name, values in columns.items()}}

    def _with(self, columns: dict[str, Any]) -> "UserEmbeddings":
        return dataclasses.replace(self, **columns)

    def _columns(self) -> dict[str, np.ndarray]:
        columns = {"items": self.items, "embeddings": self.embeddings, "mask": self.mask}
        return columns if self.query is None else {**columns, "query": self.query}


def parameters_fingerprint(values: Mapping[str, jax.Array]) -> str:
    """SHA-256 of parameters by path."""
    found = hashlib.sha256()
    for path in sorted(values):
        value = np.asarray(values[path])
        found.update(f"{path} {value.dtype} {value.shape}".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()


def catalogue_fingerprint(catalogue: Catalogue) -> str:
    """SHA-256 of the items' ids and titles."""
    found = hashlib.sha256()
    for column in (catalogue.raw_ids, catalogue.titles):
        found.update("\0".join(column).encode("utf-8", "surrogatepass"))
    return found.hexdigest()

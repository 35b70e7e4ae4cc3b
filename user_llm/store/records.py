"""A user's record in bytes: as long for every user of a run, so that a batch of them is one array."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from user_llm.embeddings import UserEmbeddings

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}

_MARK = 16  # bytes of a fingerprint


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a record holds.

    Attributes:
      events: S.
      slots: N, vectors of a user.
      width: U.
      query: Q; 0 where none is kept.
      times: whether events have times.
      dtype: of vectors, one of `DTYPES`.
    """

    events: int
    slots: int
    width: int
    query: int
    times: bool
    dtype: str

    @property
    def columns(self) -> np.dtype:
        """NumPy's structured type."""
        kept = np.uint16 if self.dtype == "bfloat16" else np.float32  # bytes of a bfloat16, which NumPy has not
        fields: list[Any] = [("encoder", f"V{_MARK}"), ("catalogue", f"V{_MARK}")]
        fields += [("item", "<i4", (self.events,)), ("rating", "u1", (self.events,))]
        if self.times:
            fields += [("ago", "<i4", (self.events,)), ("newest", "<i8")]
        fields += [("mask", "?", (self.slots,)), ("embeddings", kept, (self.slots, self.width))]
        if self.query:
            fields += [("query", kept, (self.query,))]
        return np.dtype(fields)

    def write(self, read: Mapping[str, np.ndarray], users: UserEmbeddings) -> list[bytes]:
        """The records of users.

        Args:
          read: their events as `EventReader.read` gives them.
          users: what the run has made of them.
        """
        rows = np.zeros(len(users), self.columns)
        rows["encoder"], rows["catalogue"] = (_mark(name) for name in (users.encoder, users.catalogue))
        rows["item"], rows["rating"] = read["history/item"], read["history/rating"]
        if self.times:
            rows["ago"], rows["newest"] = read["history/ago"], read["history/newest"]
        rows["mask"], rows["embeddings"] = users.mask, self._packed(users.embeddings)
        if self.query:
            rows["query"] = self._packed(users.query)
        return [row.tobytes() for row in rows]

    def read(self, records: Sequence[bytes]) -> np.ndarray:
        """Records `[B]` as an array of `columns`, which shares their memory."""
        return np.frombuffer(b"".join(records), self.columns)

    def users(self, rows: np.ndarray, encoder: str, catalogue: str) -> UserEmbeddings:
        """What rows of `read` hold of the users, made by an encoder of a catalogue (see `made_by`)."""
        query = self._unpacked(rows["query"]) if self.query else None
        return UserEmbeddings(rows["item"], self._unpacked(rows["embeddings"]), rows["mask"], query, encoder, catalogue)

    def _packed(self, values: Any) -> np.ndarray:
        values = np.asarray(values, DTYPES[self.dtype])
        return values.view(np.uint16) if self.dtype == "bfloat16" else values

    def _unpacked(self, values: np.ndarray) -> np.ndarray:
        if self.dtype == "float32":
            return values
        return np.ascontiguousarray(values).view(DTYPES["bfloat16"]).astype(np.float32)


def made_by(rows: np.ndarray, encoder: str, catalogue: str) -> tuple[np.ndarray, np.ndarray]:
    """bool `[B]` each: whether rows of `Layout.read` are of this encoder, and of this catalogue."""
    return rows["encoder"] == _mark(encoder), rows["catalogue"] == _mark(catalogue)


def _mark(fingerprint: str) -> np.void:
    return np.void(bytes.fromhex(fingerprint)[:_MARK])

"""Answers of an exported run (`user-llm export`), in an environment with this alone:

    pip install jax flatbuffers numpy safetensors

    from runtime import Recommender

    run = Recommender("EXPORTED")
    run.recommend([{"item": "Heat (1995)", "rating": 4.0}], k=10)

A program is compiled when it is asked for the first time; JAX_COMPILATION_CACHE_DIR keeps it for the next process.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file


class Recommender:
    """A run that was exported.

    Args:
      folder: what `user-llm export` has written.

    Attributes:
      facts: of the folder: `history_length`, `num_beams`, `batches`, `reads`, `ratings`, the fingerprints and more.
      titles, raw_ids: by item id, "" for 0.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        self.facts = json.loads((self._folder / "export.json").read_text(encoding="utf-8"))
        weights = load_file(self._folder / "weights.safetensors")
        self._weights = {
            program: {name: weights[name] for name in names} for program, names in self.facts["weights"].items()
        }
        self._weights = jax.device_put(self._weights)
        self._trie = jax.device_put(load_file(self._folder / "trie.safetensors"))
        columns = load_file(self._folder / "catalogue.safetensors")
        self.titles, self.raw_ids = (_texts(columns, name) for name in ("titles", "raw_ids"))
        self._items = {title: item for item, title in enumerate(self.titles) if item}
        self._ratings = {rating: index for index, rating in enumerate(self.facts["ratings"], start=1)}
        self._prompt = np.array(self.facts["prompt"], np.int32)
        self._programs: dict[str, Any] = {}

    def encode(self, users: Sequence[Sequence[Mapping[str, Any]]], now: float | None = None) -> dict[str, np.ndarray]:
        """What the language model reads of users: `items` int32 `[B, S]`, `embeddings` `[B, N, U]`, `mask` `[B, N]`.

        Args:
          users: the events of each, oldest first: `{"item": title, "rating": number}`, and `"time"` in seconds since
            1970 where `facts["reads"]` has "ago".
          now: when they are asked, where the run reads that (`facts["asked"]`).

        Raises:
          ValueError: no events; an item or a rating that the run does not know; times that it needs and has not, or not
            in order.
        """
        if (now is not None) != self.facts["asked"]:
            raise ValueError("this run reads when it is asked: give now=" if now is None else "this run reads no now=")
        length, parts = self.facts["history_length"], []
        history = {name: np.zeros((len(users), length), np.int32) for name in self.facts["reads"]}
        items = history["item"]
        for row, events in enumerate(users):
            recent = list(events)[-length:]
            if not recent:
                raise ValueError(f"user {row} has no events")
            for slot, event in enumerate(recent, start=length - len(recent)):
                items[row, slot] = _known(self._items, event["item"], "title of the catalogue", row)
                if "rating" in history:
                    history["rating"][row, slot] = _known(self._ratings, event.get("rating"), "rating of the run", row)
            if "ago" in history:
                history["ago"][row, length - len(recent) :] = self._ago(recent, now, row)
        for some in _batches(len(users), self.facts["batches"]):
            made = self._run("encode", some, self._weights["encode"], {name: x[some] for name, x in history.items()})
            parts.append({"items": items[some], **made})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def recommend(
        self,
        users: Sequence[Any] | Mapping[str, np.ndarray],
        k: int = 10,
        *,
        now: float | None = None,
    ) -> list[Any]:
        """The `k` likeliest next items of a user, or a list of them for each of many: `(title, log-probability)`.

        Args:
          users: events of one user or of many, or what `encode` has made.
          k: up to `facts["num_beams"]`.

        Raises:
          ValueError: as `encode`; `k` is more than that.
        """
        if not 1 <= k <= self.facts["num_beams"]:
            raise ValueError(
                f"k must be from 1 to {self.facts['num_beams']}, with which this run was exported, got {k}"
            )
        if not len(users):
            return []
        many = isinstance(users, Mapping) or not isinstance(users[0], Mapping)
        kept = users if isinstance(users, Mapping) else self.encode(users if many else [users], now)
        answers: list[list[tuple[str, float]]] = []
        for some in _batches(len(kept["items"]), self.facts["batches"]):
            of_users = {name: kept[name][some] for name in ("embeddings", "mask")}
            closed = {"excluded": kept["items"][some]}
            found = self._run("recommend", some, self._weights["recommend"], self._trie, of_users, self._prompt, closed)
            for items, scores in zip(found["items"].tolist(), found["scores"].tolist(), strict=True):
                best = [(self.titles[item], score) for item, score in zip(items, scores, strict=True) if item]
                answers.append(best[:k])
        return answers if many else answers[0]

    def _ago(self, events: Sequence[Mapping[str, Any]], now: float | None, row: int) -> np.ndarray:
        moments = [event.get("time") for event in events]
        if None in moments:
            raise ValueError(f"user {row}: this run reads times: give each event its time")
        times = np.array([*moments, moments[-1] if now is None else now], np.float64)
        if (np.diff(times) < 0).any():
            raise ValueError(f"user {row}: a time is before the one before it: give events oldest first")
        return np.minimum(times[-1] - times[:-1], np.iinfo(np.int32).max).astype(np.int32)

    def _run(self, program: str, some: slice, *arguments: Any) -> dict[str, np.ndarray]:
        """Runs a program for a batch, whose arguments with a leading batch axis are filled up."""
        count = some.stop - some.start
        size = next(size for size in self.facts["batches"] if size >= count)
        name = f"{program}_{size}"
        if name not in self._programs:
            exported = export.deserialize(bytearray((self._folder / "programs" / f"{name}.bin").read_bytes()))
            self._programs[name] = jax.jit(exported.call)

        def filled(x: np.ndarray) -> np.ndarray:
            return np.pad(x, ((0, size - count), *((0, 0),) * (x.ndim - 1)))

        fixed = 2 if program == "recommend" else 1  # weights, and the trie
        users = [jax.tree.map(filled, part) if isinstance(part, dict) else part for part in arguments[fixed:]]
        found = self._programs[name](*arguments[:fixed], *users)
        return {key: np.asarray(value)[:count] for key, value in found.items()}


def _known(ids: Mapping[Any, int], value: Any, what: str, row: int) -> int:
    if value not in ids:
        raise ValueError(f"user {row}: {value!r} is no {what}")
    return ids[value]


def _batches(count: int, sizes: Sequence[int]) -> list[slice]:
    return [slice(start, min(start + sizes[-1], count)) for start in range(0, count, sizes[-1])]


def _texts(columns: Mapping[str, np.ndarray], name: str) -> list[str]:
    text, ends = columns[f"{name}/bytes"].tobytes(), columns[f"{name}/offsets"].tolist()
    return [text[start:end].decode("utf-8") for start, end in itertools.pairwise(ends)]

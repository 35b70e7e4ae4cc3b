"""What a server may answer: changes that its replicas share, and a search in the titles."""

import threading
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from user_llm.answerable import AnswerableItems, Changes
from user_llm.api import UserModel
from user_llm.arguments import whole
from user_llm.data.timelines import Catalogue
from user_llm.store.user_store import UserStore

_WORD = "\1"  # stands before each word of a text that is searched
_BLOCK = 1 << 16  # titles that are folded at once


class SharedItems:
    """The items that a run may answer, in step with all who serve it from one store. Threads may share it.

    It alone may change `model.items`. A change is in the store before it is seen here, and seen here when the method
    returns; the others see it when they `follow`.

    Args:
      model: whose items they are.
      store: that the replicas share; None: there is no other.
      prepare: is given what will be answered before that is so, as to compile for it. What it raises is raised from
        the change, and nothing was changed.
    """

    def __init__(
        self, model: UserModel, store: UserStore | None, *, prepare: Callable[[Changes], None] = lambda changes: None
    ):
        self._items, self._store, self._prepare = model.items, store, prepare
        self._lock = threading.Lock()

    def add(self, items: Sequence[Mapping[str, str]]) -> int:
        """`AnswerableItems.add` for all; returns the version with it.

        Raises:
          UserError: as it does, and of a store that fails or is of another catalogue.
        """
        return self._change(lambda state: self._items.plus(state, items))

    def remove(self, titles: Sequence[str]) -> int:
        """`AnswerableItems.remove` for all; returns the version with it.

        Raises:
          UserError: as `add`.
        """
        return self._change(lambda state: self._items.minus(state, titles))

    def follow(self) -> bool:
        """Takes over what others have changed; whether there was something.

        Raises:
          UserError: of a store that fails or is of another catalogue.
        """
        with self._lock:
            kept = self._kept()
            if kept.version <= self._items.version:
                return False
            self._prepare(kept)
            return self._items.follow(kept)

    def _kept(self) -> Changes:
        return self._items.state if self._store is None else self._store.items()

    def _change(self, change: Callable[[Changes], Changes]) -> int:
        with self._lock:
            while True:
                kept = self._kept()
                # A store that was lost, or put back from a copy, is behind those who have read it.
                after = change(max(self._items.state, kept, key=lambda state: state.version))
                self._prepare(after)
                if self._store is None or self._store.replace_items(kept, after):
                    self._items.follow(after)
                    return after.version


class Found(NamedTuple):
    """What a search has found.

    Attributes:
      items: best first, each `{"title": text, "item": the run's id}`; of one that was added its title is its id.
      total: how many match.
      version: of the items that may be answered.
    """

    items: list[dict[str, str]]
    total: int
    version: int


class TitleSearch:
    """Finds items that may be answered by a part of their title. Threads may share it.

    Case, accents and forms of a letter do not matter ("amelie" finds "Amélie", "strasse" "Straße").

    Args:
      catalogue: of the run.
      items: what may be answered.
    """

    def __init__(self, catalogue: Catalogue, items: AnswerableItems):
        self._catalogue, self._items = catalogue, items
        starts = range(1, len(catalogue.titles), _BLOCK)
        self._titles = pa.concat_arrays([_searched(catalogue.titles[start : start + _BLOCK]) for start in starts])
        self._now = self._of(items.state)

    def _of(self, state: Changes) -> tuple[Changes, pa.Array, np.ndarray]:
        titles = pa.concat_arrays([self._titles, _searched(state.added)]) if state.added else self._titles
        return state, titles, self._items.answered(state)[1:]

    def find(self, query: str, limit: int) -> Found:
        """The first `limit` items whose title has `query` in it; without a query, of all.

        Titles that begin with it come first, then those with a word that does, then the others; among their like in
        the order of ids, the added ones last.

        Raises:
          UserError: `limit` is no number of items.
        """
        limit, now = whole("limit", limit, 1), self._now
        if now[0] is not self._items.state:
            self._now = now = self._of(self._items.state)
        state, titles, answered = now
        query = _searched([query.encode("utf-8", "replace").decode()])[0].as_py()
        within = pc.match_substring(titles, query.removeprefix(_WORD)).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(within & answered)
        some = titles if len(rows) == len(titles) else titles.take(pa.array(rows))
        ranks = np.full(len(rows), 2)
        if query.startswith(_WORD):
            ranks[pc.match_substring(some, query).to_numpy(zero_copy_only=False)] = 1
        ranks[pc.starts_with(some, query).to_numpy(zero_copy_only=False)] = 0
        best = rows[np.argsort(ranks, kind="stable")[:limit]] + 1
        return Found([self._named(item, state.added) for item in best.tolist()], len(rows), state.version)

    def _named(self, item: int, added: Sequence[str]) -> dict[str, str]:
        known, later = self._catalogue, item - self._catalogue.num_items - 1
        title, raw_id = (known.titles[item], known.raw_ids[item]) if later < 0 else (added[later], added[later])
        return {"title": title, "item": raw_id}


def _searched(titles: Sequence[str]) -> pa.Array:
    """Titles without case and accents, with a mark before each word."""
    folded = pa.array([_folded(title) for title in titles], pa.large_string())
    return pc.replace_substring_regex(folded, r"([\pL\pN]+)", _WORD + r"\1")


def _folded(text: str) -> str:
    text = text.replace(_WORD, " ")
    if text.isascii():  # as most are, and quicker
        return text.lower().strip()
    letters = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).strip()

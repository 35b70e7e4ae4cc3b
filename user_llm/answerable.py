"""Which items a finished run may answer: those of its catalogue, what came and went since, and what a caller wants."""

import reprlib
import threading
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from user_llm.data.timelines import Catalogue
from user_llm.errors import UserError
from user_llm.given import ids_of


class Chosen(NamedTuple):
    """What one call may answer.

    Attributes:
      extra: titles that came after the training; their ids stand behind the catalogue's.
      ids: the id of each title, theirs too.
      allowed: bool `[I+1]`, with the extra ones; None: all.
    """

    extra: tuple[str, ...]
    ids: Mapping[str, int]
    allowed: np.ndarray | None


class Changes(NamedTuple):
    """What came and went since the training, as a whole.

    Attributes:
      version: how many changes.
      added: titles in the order of their ids, which stand behind the catalogue's.
      removed: titles of both that are no answer.
    """

    version: int = 0
    added: tuple[str, ...] = ()
    removed: frozenset[str] = frozenset()


class AnswerableItems:
    """The items that may be answered, which can be changed at any moment. Threads may share one.

    A call sees all of a change or nothing of it. The workdir stays as it is: who loads the run again makes the changes
    again.

    Args:
      catalogue: of the run.
      ids: the id of each of its titles.
    """

    def __init__(self, catalogue: Catalogue, ids: dict[str, int]):
        self._catalogue, self._ids = catalogue, ids
        self._changes = Changes()
        self._lock = threading.Lock()

    @property
    def version(self) -> int:
        """How often they have been changed."""
        return self._changes.version

    @property
    def state(self) -> Changes:
        """All changes up to now."""
        return self._changes

    def follow(self, state: Changes) -> bool:
        """Takes over a whole state of another run of this catalogue, if it is newer; whether it was."""
        with self._lock:
            newer = state.version > self._changes.version
            if newer:
                self._changes = state
            return newer

    def add(self, items: Sequence[Mapping[str, str]]) -> None:
        """Lets items be answered from now on, each `{"title": text}`: new ones, or some that were removed before.

        Of a new one the encoder knows nothing: it is no event that could be read. 1,024 find room before anything is
        compiled anew.

        Raises:
          UserError: one that is no such thing, or can be answered already; nothing was added.
        """
        with self._lock:
            self._changes = self.plus(self._changes, items)

    def plus(self, state: Changes, items: Sequence[Mapping[str, str]]) -> Changes:
        """The state after one more `add`, whose errors it raises; nothing is changed."""
        version, added, removed = state
        titles = _titles_of(items)
        self._refuse_known(titles, added, removed)
        new = [title for title in titles if title not in removed]
        return Changes(version + 1, (*added, *new), removed - {*titles})

    def remove(self, titles: Sequence[str]) -> None:
        """Lets items not be answered from now on. They can be read in events as before.

        Raises:
          UserError: one that cannot be answered now, or nothing would be left; nothing was removed.
        """
        with self._lock:
            self._changes = self.minus(self._changes, titles)

    def minus(self, state: Changes, titles: Sequence[str]) -> Changes:
        """The state after one more `remove`, whose errors it raises; nothing is changed."""
        version, added, removed = state
        ids = self._ids_with(added)
        ids_of("remove", titles, ids)
        for title in titles:
            if title in removed:
                raise UserError(f"remove: {title!r} was removed before.")
        removed |= {*titles}
        if len(removed) == len(ids):
            raise UserError("remove: no item would be left that may be answered.")
        return Changes(version + 1, added, removed)

    def answered(self, state: Changes) -> np.ndarray:
        """bool `[I+1]`, with the added ones behind the catalogue's: the ids that may be answered in a state."""
        mask = np.arange(self._catalogue.num_items + 1 + len(state.added)) > 0
        ids = self._ids_with(state.added)
        mask[[ids[title] for title in state.removed]] = False
        return mask

    def chosen(
        self, extra_items: Sequence[Mapping[str, str]], allow: Sequence[str] | None, category: str | None
    ) -> Chosen:
        """What a call may answer, with `UserModel.recommend`'s arguments.

        Raises:
          UserError: as it says.
        """
        state = self._changes
        more = _titles_of(extra_items)
        self._refuse_known(more, state.added, frozenset())
        state = state._replace(added=(*state.added, *more))
        ids = self._ids_with(state.added)
        return Chosen(state.added, ids, self._allowed(ids, state, allow, category))

    def _ids_with(self, titles: Sequence[str]) -> Mapping[str, int]:
        first = self._catalogue.num_items + 1
        return ChainMap({title: first + n for n, title in enumerate(titles)}, self._ids)

    def _refuse_known(self, titles: Sequence[str], added: Sequence[str], removed: frozenset[str]) -> None:
        known = {*added}
        for index, title in enumerate(titles):
            if (title in self._ids or title in known) and title not in removed:
                raise UserError(f"extra item {index}: {title!r} is a title of the catalogue, or given twice.")

    def _allowed(self, ids: Mapping[str, int], state: Changes, allow: Any, category: Any) -> np.ndarray | None:
        if allow is None and category is None and not state.removed:
            return None
        mask = self.answered(state)
        if allow is not None:
            chosen = np.zeros(len(mask), bool)
            chosen[ids_of("allow", allow, ids)] = True
            mask &= chosen
        if category is not None:
            names = list(self._catalogue.category_names)
            if category not in names[1:]:
                raise UserError(f"category must be one of {reprlib.repr(names[1:])}, got {reprlib.repr(category)}.")
            of_category = (self._catalogue.item_categories == names.index(category)).any(axis=1)
            mask &= np.pad(of_category, (0, len(mask) - len(of_category)))
        if not mask.any():
            raise UserError("no title is left that may be answered: allow=, category= and what was removed leave none.")
        return mask


def _titles_of(items: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """The titles of items that came after the training."""
    titles: dict[str, None] = {}
    for index, item in enumerate(items):
        title = item.get("title") if isinstance(item, Mapping) and {*item} == {"title"} else None
        # Half a character (a surrogate) could never be told to anybody.
        if not isinstance(title, str) or not title.strip() or title.encode("utf-8", "ignore").decode() != title:
            raise UserError(f'extra item {index}: expected {{"title": text}}, got {reprlib.repr(item)}.')
        if title in titles:
            raise UserError(f"extra item {index}: {title!r} is a title of the catalogue, or given twice.")
        titles[title] = None
    return tuple(titles)

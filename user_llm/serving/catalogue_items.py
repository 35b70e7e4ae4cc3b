"""What a server may answer: changes that its replicas share."""

import threading
from collections.abc import Callable, Mapping, Sequence

from user_llm.answerable import Changes
from user_llm.api import UserModel
from user_llm.store.user_store import UserStore


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

"""Named objects of one kind (tasks, encoder kinds, stages), added with one line: `TASKS.register(MyTask())`."""

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from user_llm.errors import UserError


class Named(Protocol):
    """What a registry holds: anything with a name."""

    name: str


Entry = TypeVar("Entry", bound=Named)


class Registry(Generic[Entry]):
    """Objects by name, in the order in which they were added."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def register(self, entry: Entry) -> Entry:
        """Adds `entry` under its name and returns it.

        The same class, loaded again, takes its own place: a config's file is read more than once.

        Raises:
          UserError: the name is taken.
        """
        taken = self._entries.get(entry.name)
        if taken is not None and _place(taken) != _place(entry):
            raise UserError(f"the name {entry.name!r} is taken by {_place(taken)}: give {_place(entry)} another one.")
        self._entries[entry.name] = entry
        return entry

    def unregister(self, name: str) -> None:
        """Takes an entry out again."""
        del self._entries[name]

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Of all entries."""
        return tuple(self._entries)


def _place(entry: object) -> str:
    return f"{type(entry).__module__}.{type(entry).__qualname__}"

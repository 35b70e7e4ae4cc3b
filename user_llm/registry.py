"""Named objects of one kind (tasks, encoder kinds, stages), added with one line: `TASKS.register(MyTask())`."""

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Named(Protocol):
    """What a registry holds: anything with a name."""

    name: str


Entry = TypeVar("Entry", bound=Named)


class Registry(Generic[Entry]):
    """Objects by name, in the order in which they were added."""

    def __init__(self):
        self._entries: dict[str, Entry] = {}

    def register(self, entry: Entry) -> Entry:
        """Adds `entry` under its name and returns it.

        Raises:
          ValueError: the name is taken.
        """
        if entry.name in self._entries:
            raise ValueError(f"{entry.name!r} is registered already, as {self._entries[entry.name]!r}.")
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

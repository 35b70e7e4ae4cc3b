"""What a store asks of a database: bytes by key, and a change that nobody else has made in between."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from user_llm.errors import UserError

Pair = tuple[bytes, bytes]


class StoreError(UserError):
    """A database fails, whatever it was asked."""


class Engine(Protocol):
    """A database of records. What a method has written when it returns outlives the process.

    Attributes:
      longest_key: bytes.
    """

    longest_key: int

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The record of each key, None where there is none."""
        ...

    def put_many(self, records: Iterable[Pair]) -> None:
        """Writes records, all or none of them."""
        ...

    def replace(self, key: bytes, old: bytes | None, new: bytes) -> bool:
        """Writes `new` if the record is still `old` (None: if there is none); tells whether it was."""
        ...

    def delete_many(self, keys: Sequence[bytes]) -> int:
        """Deletes records; how many there were."""
        ...

    def names(self) -> Iterator[bytes]:
        """All keys, each at least once if it is there all the time."""
        ...

    def count(self) -> int:
        """How many records there are."""
        ...

    def compact(self) -> None:
        """Gives back the room of what was deleted, of which nothing is left in the database's files then."""
        ...

    def close(self) -> None:
        """Ends the use of it."""
        ...

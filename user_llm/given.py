"""What a caller from Python may give of users: one or many, and for each of them or for all."""

import dataclasses
import itertools
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from user_llm.embeddings import UserEmbeddings
from user_llm.errors import UserError
from user_llm.events import EVENT, Event, no_title

Users = Sequence[Event] | Sequence[Sequence[Event]] | Iterator[Sequence[Event]] | UserEmbeddings
"""One user's events, or those of many: a list of lists, or an iterator, whose answers come as an iterator, too."""


def is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


@dataclasses.dataclass(frozen=True)
class Given:
    """Users as they were given.

    Attributes:
      many: whether as several, who get a list of answers.
      users: embeddings, or an iterable of each one's events.
      count: how many; None: an iterator, which cannot tell.
    """

    many: bool
    users: Any
    count: int | None

    def each(self, name: str, value: Any) -> Callable[[slice], list[Any]]:
        """The value of some users: one for all, or of a list of them theirs."""
        if not self.many or value is None or isinstance(value, (int, float)):
            return lambda rows: [value] * (rows.stop - rows.start)
        if not is_list(value) or len(value) != self.count:
            users = "the users, who come one by one" if self.count is None else f"the {self.count} users"
            raise UserError(f"{name} must be one for each of {users}, got {reprlib.repr(value)}.")
        return lambda rows: list(value[rows])

    def closed(self, ids: Mapping[str, int], exclude: Any) -> Callable[[slice], list[list[int]]] | None:
        """The ids that are no answer for some users; None: every one may be."""
        if not is_list(exclude):
            raise UserError(f"exclude must be a list of titles, got {reprlib.repr(exclude)}.")
        if not exclude:
            return None
        if not is_list(exclude[0]):
            for_all = ids_of("exclude", exclude, ids)
            return lambda rows: [for_all] * (rows.stop - rows.start)
        of_each = [ids_of(f"exclude of user {user}", titles, ids) for user, titles in enumerate(exclude)]
        return dataclasses.replace(self, many=True).each("exclude", of_each)


def as_many(users: Any) -> Given:
    """Whether these are several users, and them one by one."""
    if isinstance(users, UserEmbeddings):
        return Given(True, users, len(users))
    if isinstance(users, Iterator):
        first = list(itertools.islice(users, 1))
        if first and not is_list(first[0]):
            raise UserError(f"events must be a list of at least one event, {EVENT}, got {reprlib.repr(users)}.")
        return Given(True, itertools.chain(first, users), None)
    if is_list(users) and len(users) > 0 and is_list(users[0]):
        return Given(True, users, len(users))
    return Given(False, [users], 1)


def skips(unknown: Any) -> bool:
    """Whether events that a run does not know are left out, or an error."""
    if unknown not in ("error", "skip"):
        raise UserError(f"unknown must be 'error' or 'skip', got {reprlib.repr(unknown)}.")
    return bool(unknown == "skip")


def ids_of(name: str, titles: Any, ids: Mapping[str, int]) -> list[int]:
    if not is_list(titles):
        raise UserError(f"{name} must be a list of titles, got {reprlib.repr(titles)}.")
    for title in titles:
        if not isinstance(title, str) or title not in ids:
            raise no_title(name, title, ids)
    return [ids[title] for title in titles]

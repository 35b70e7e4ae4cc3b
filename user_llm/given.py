"""What a caller from Python may give of users: one or many, and for each of them or for all."""

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


def as_many(users: Any) -> tuple[bool, Any, int | None]:
    """Whether these are several users, them one by one, and how many; None: an iterator, which cannot tell."""
    if isinstance(users, UserEmbeddings):
        return True, users, len(users)
    if isinstance(users, Iterator):
        first = list(itertools.islice(users, 1))
        if first and not is_list(first[0]):
            raise UserError(f"events must be a list of at least one event, {EVENT}, got {reprlib.repr(users)}.")
        return True, itertools.chain(first, users), None
    if is_list(users) and len(users) > 0 and is_list(users[0]):
        return True, users, len(users)
    return False, [users], 1


def skips(unknown: Any) -> bool:
    """Whether events that a run does not know are left out, or an error."""
    if unknown not in ("error", "skip"):
        raise UserError(f"unknown must be 'error' or 'skip', got {reprlib.repr(unknown)}.")
    return bool(unknown == "skip")


def each_of(name: str, value: Any, count: int | None, many: bool) -> Callable[[slice], list[Any]]:
    """The value of some users: one for all, or of a list of them theirs."""
    if not many or value is None or isinstance(value, (int, float)):
        return lambda rows: [value] * (rows.stop - rows.start)
    if not is_list(value) or len(value) != count:
        users = "the users, who come one by one" if count is None else f"the {count} users"
        raise UserError(f"{name} must be one for each of {users}, got {reprlib.repr(value)}.")
    return lambda rows: list(value[rows])


def ids_of(name: str, titles: Any, ids: Mapping[str, int]) -> list[int]:
    if not is_list(titles):
        raise UserError(f"{name} must be a list of titles, got {reprlib.repr(titles)}.")
    for title in titles:
        if not isinstance(title, str) or title not in ids:
            raise no_title(name, title, ids)
    return [ids[title] for title in titles]


def closed_items(ids: Mapping[str, int], exclude: Any, count: int | None) -> Callable[[slice], list[list[int]]] | None:
    """The ids that are no answer for some users."""
    if not is_list(exclude):
        raise UserError(f"exclude must be a list of titles, got {reprlib.repr(exclude)}.")
    if not exclude:
        return None
    if not is_list(exclude[0]):
        for_all = ids_of("exclude", exclude, ids)
        return lambda rows: [for_all] * (rows.stop - rows.start)
    of_each = [ids_of(f"exclude of user {user}", titles, ids) for user, titles in enumerate(exclude)]
    return each_of("exclude", of_each, count, True)

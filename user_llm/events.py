"""A user's events as Python gives them, read into the arrays that a run's models read."""

import difflib
import reprlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from user_llm.arguments import is_number
from user_llm.errors import UserError

Event = Mapping[str, Any]
EVENT = '{"item": title, "rating": number}'


def no_title(where: str, title: Any, titles: Iterable[str]) -> UserError:
    """That it is none of the titles, with the nearest of them."""
    near = difflib.get_close_matches(str(title), titles, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return UserError(f"{where}: {title!r} is no title of the catalogue{hint}")


class EventReader:
    """Reads events by the titles and ratings of a run.

    Args:
      config: of the run.
      titles: by item id, "" for 0.
      rating_names: by rating class, "" for 0.

    Attributes:
      items: the id of each title.
      ratings: the class, from 1, of each rating.
      skipped: how many events have been left out so far, as the run does not know their item or rating.
    """

    def __init__(self, config: ConfigDict, titles: Sequence[str], rating_names: Sequence[str]):
        self.config = config
        self.items = {title: item for item, title in enumerate(titles) if item}
        self.ratings = {float(name): index for index, name in enumerate(rating_names) if name}
        self.skipped = 0
        self._lock = threading.Lock()

    def read(
        self, users: Sequence[Sequence[Event]], now: Sequence[float | None], where: Sequence[str], *, skip: bool = False
    ) -> dict[str, np.ndarray]:
        """`history/item`, `history/rating` int32 `[B, S]`; `history/ago` too, and int64 `[B]` `history/newest`, seconds
        since 1970 of the last event, where the run reads times.

        Args:
          users: events of each, oldest first; the latest S are read.
          now: when each is asked, in seconds since 1970, where the run reads that.
          where: what stands before an event in an error, for each user.
          skip: leaves out events whose item or rating the run does not know, and counts them; a user may have no other.

        Raises:
          UserError: no events, or one that is none; the nearest valid titles or ratings are named.
        """
        length = self.config.data.history_length
        history = np.zeros((2, len(users), length), np.int32)
        ages, newest = np.zeros((len(users), length), np.int32), np.zeros(len(users), np.int64)
        for row, (events, moment, prefix) in enumerate(zip(users, now, where, strict=True)):
            if not isinstance(events, Sequence) or isinstance(events, (str, bytes)) or not events:
                raise UserError(
                    f"{prefix}events must be a list of at least one event, {EVENT}, got {reprlib.repr(events)}."
                )
            recent = self._known(events) if skip else list(enumerate(events))
            recent = recent[-length:]
            for slot, (index, event) in enumerate(recent, start=length - len(recent)):
                name = f"{prefix}event {index}"
                unread = skip and not self.reads_ratings  # whatever it is
                history[:, row, slot] = self.item(name, event), 0 if unread else self.rating(name, event)
            if recent and (ago := self._ago(recent, moment, prefix)) is not None:
                ages[row, -len(recent) :] = ago
                newest[row] = int(recent[-1][1]["time"])
        read = {"history/item": history[0], "history/rating": history[1]}
        return {**read, "history/ago": ages, "history/newest": newest} if self.reads_times else read

    def _known(self, events: Sequence[Event]) -> list[tuple[int, Event]]:
        """The events that the run knows, with their places; the others are counted."""
        known = [(index, event) for index, event in enumerate(events) if self._knows(event)]
        with self._lock:
            self.skipped += len(events) - len(known)
        return known

    def _knows(self, event: Event) -> bool:
        if not isinstance(event, Mapping) or not isinstance(event.get("item"), str):
            return True  # it is none at all, which is an error
        rating = event.get("rating")
        known = rating is None if not is_number(rating) else float(rating) in self.ratings
        return event["item"] in self.items and (known or not self.reads_ratings)

    @property
    def reads_ratings(self) -> bool:
        """Whether an event needs a rating."""
        return self.config.integration.kind != "none" and "rating" in self.config.encoder.features

    @property
    def reads_times(self) -> str:
        """What is read of times: "", "past" or "asked"."""
        return self.config.encoder.time if self.config.integration.kind != "none" else ""

    def check_now(self, now: float | None, name: str = "now") -> None:
        """Refuses a time of the answer where none is read, and the want of one where it is.

        Raises:
          UserError: so it is, or the time is none.
        """
        if (now is not None) != (self.reads_times == "asked"):
            asks = f"no time of the answer: leave {name}= out"
            if now is None:
                asks = f"the time of the answer: give {name}="
            raise UserError(f"config.encoder.time={self.reads_times!r} reads {asks}.")
        if now is not None and not is_number(now):
            raise UserError(f"{name} must be a number of seconds since 1970, got {reprlib.repr(now)}.")

    def _ago(self, events: Sequence[tuple[int, Event]], now: float | None, prefix: str) -> np.ndarray | None:
        """Seconds until now, or until the newest event, of each; None where the run reads no times."""
        self.check_now(now)
        if not self.reads_times:
            return None
        moments: list[float] = []
        for index, event in events:
            moments.append(self.moment(f"{prefix}event {index}: its time", event.get("time"), *moments[-1:]))
        if now is not None:
            moments.append(self.moment(f"{prefix}now", now, *moments[-1:]))
        span = moments[-1] - np.array(moments[: len(events)])
        return np.minimum(span, np.iinfo(np.int32).max).astype(np.int32)

    def moment(self, name: str, moment: Any, before: float | None = None) -> float:
        """A time in seconds since 1970; not before the one before it."""
        if not is_number(moment):
            raise UserError(f"{name} must be a number of seconds since 1970, got {reprlib.repr(moment)}.")
        if before is not None and moment < before:
            raise UserError(f"{name} is before the event before it: give events oldest first.")
        return float(moment)

    def item(self, where: str, event: Event) -> int:
        """The id of an event's item."""
        if not isinstance(event, Mapping) or "item" not in event:
            raise UserError(f"{where}: expected {EVENT}, got {reprlib.repr(event)}.")
        title = event["item"]
        if not isinstance(title, str) or title not in self.items:
            raise no_title(where, title, self.items)
        return self.items[title]

    def rating(self, where: str, event: Event, *, asked: bool = False) -> int:
        """The class of an event's rating; 0 where it has none, and none is read. `asked`: one is, in any case."""
        if "rating" not in event and not asked and not self.reads_ratings:
            return 0
        rating = event.get("rating")
        if not is_number(rating) or float(rating) not in self.ratings:
            known = ", ".join(f"{value:g}" for value in self.ratings)
            raise UserError(f"{where}: rating {reprlib.repr(rating)}; expected one of {known}")
        return self.ratings[float(rating)]

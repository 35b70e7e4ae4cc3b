"""Requests that wait in a queue with a bound, and are answered in batches by one thread."""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from user_llm.asking import BATCHES


class Full(Exception):
    """As many wait as may."""


class Closed(Exception):
    """Nothing is taken any more."""


class Late(Exception):
    """A request has waited for longer than it may."""


class Done(NamedTuple):
    """A request's answer.

    Attributes:
      value: what `run` has given for it.
      users: how many were answered at once.
    """

    value: Any
    users: int


class _Waiting(NamedTuple):
    key: Hashable
    payload: Any
    future: "Future[Done]"
    came: float
    deadline: float


Run = Callable[[Any, list[Any]], Sequence[Any]]


class Batcher:
    """A lane: a queue, and a thread that answers what waits in it, the oldest first.

    Of the requests with the oldest one's key as many are taken as give the most users a second. Where nothing waited
    before, others are waited for, as long as `max_delay` since the oldest came.

    Args:
      run: key, payloads → a result for each, or an exception for one that is wrong.
      name: of the thread.
      sizes: of batches, ascending, one of which a batch is filled up to.
      limit: requests that may wait.
      max_delay: seconds.
      seconds: key, size → how long a batch of this size takes; only their ratio counts. None: all take the same.
      observe: told of each batch how many it had, how long the oldest waited, and how long it took in seconds.
    """

    def __init__(
        self,
        run: Run,
        *,
        name: str = "batcher",
        sizes: Sequence[int] = BATCHES,
        limit: int = 256,
        max_delay: float = 0.005,
        seconds: Callable[[Any, int], float] | None = None,
        observe: Callable[[int, float, float], None] | None = None,
    ):
        self._run, self._sizes, self._limit, self._max_delay = run, tuple(sizes), limit, max_delay
        self._seconds = seconds or (lambda key, size: 1.0)
        self._observe = observe or (lambda users, waited, took: None)
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def is_full(self) -> bool:
        """Whether no other request may wait now."""
        with self._changed:
            if len(self._waiting) >= self._limit:
                self._forget()
            return len(self._waiting) >= self._limit

    def submit(self, key: Hashable, payload: Any, *, timeout: float = float("inf")) -> "Future[Done]":
        """Lets a request wait; one that is not begun within `timeout` seconds, or cancelled before, is not computed.

        Raises:
          Full: too many wait.
          Closed: after `drain`.
        """
        with self._changed:
            if self._closed:
                raise Closed
            if len(self._waiting) >= self._limit:
                self._forget()
            if len(self._waiting) >= self._limit:
                raise Full
            now = time.monotonic()
            waiting = _Waiting(key, payload, Future(), now, now + timeout)
            self._waiting.append(waiting)
            self._changed.notify()
            return waiting.future

    def drain(self) -> None:
        """Takes nothing any more, answers what waits, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            self._answer(batch)
            del batch  # what the last one asked for is not kept while nobody asks

    def _next(self) -> list[_Waiting]:
        """The next batch, begun; none at the end."""
        with self._changed:
            batch: list[_Waiting] = []
            while not batch:
                self._forget()
                idle = not self._waiting
                while not self._waiting:
                    if self._closed:
                        return []
                    self._changed.wait()
                if idle:
                    self._wait_for_more()
                    self._forget()
                batch = [waiting for waiting in self._take() if waiting.future.set_running_or_notify_cancel()]
            return batch

    def _wait_for_more(self) -> None:
        oldest, enough = self._waiting[0], self._size(self._waiting[0].key, self._sizes[-1])
        while not self._closed and self._count(oldest.key) < enough:
            left = oldest.came + self._max_delay - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _count(self, key: Hashable) -> int:
        return sum(waiting.key == key for waiting in self._waiting)

    def _size(self, key: Hashable, count: int) -> int:
        """The size of a batch that answers the most users a second, where so many wait."""
        return max(self._sizes, key=lambda size: (min(size, count) / self._seconds(key, size), -size))

    def _take(self) -> list[_Waiting]:
        if not self._waiting:
            return []
        key = self._waiting[0].key
        most, taken, left = self._size(key, self._count(key)), list[_Waiting](), deque[_Waiting]()
        for waiting in self._waiting:
            (taken if waiting.key == key and len(taken) < most else left).append(waiting)
        self._waiting = left
        return taken

    def _forget(self) -> None:
        """Drops who has gone, and who has waited too long."""
        now, left = time.monotonic(), deque[_Waiting]()
        for waiting in self._waiting:
            if waiting.deadline > now and not waiting.future.cancelled():
                left.append(waiting)
            elif waiting.future.set_running_or_notify_cancel():
                waiting.future.set_exception(Late())
        self._waiting = left

    def _answer(self, batch: list[_Waiting]) -> None:
        began = time.monotonic()
        results: Sequence[Any]
        try:
            results = self._run(batch[0].key, [waiting.payload for waiting in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} requests")
        except Exception as error:
            results = [error] * len(batch)
        self._observe(len(batch), began - min(waiting.came for waiting in batch), time.monotonic() - began)
        for waiting, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                waiting.future.set_exception(result)
            else:
                waiting.future.set_result(Done(result, len(batch)))

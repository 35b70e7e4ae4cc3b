"""Limits and times of a server."""

import dataclasses

from user_llm.arguments import is_number, whole
from user_llm.asking import BATCHES
from user_llm.errors import UserError
from user_llm.tasks.next_item import ANSWERS, MOST_BEAMS


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a server allows. Times are in seconds.

    Attributes:
      k: the most answers of a request. As many are computed for each, so that no `k` is compiled for.
      answers: the ways to answer that are offered where the run has them; each is compiled at the start.
      batch: the most users at once, one of `BATCHES`; what they need of memory grows with them.
      queue: requests that may wait in each lane; more are told to come again. At 64 at once these are four batches.
      max_delay: how long the first request waits for others where the device has nothing to do.
      timeout: how long a request may wait before it is computed: who waits longer has mostly gone.
      retry_after: when somebody who was turned away should come again.
      poll_seconds: how often replicas look for a change of the items.
      body_bytes: of a request; some thousand events.
      body_seconds: within which a body must have come.
      idle_seconds: after which a connection is closed on which nothing is asked: later than a load balancer does it
        (Caddy: two minutes), which else sends requests into closed ones.
      connections: at once, idle ones included; more are turned away.
      exclude: titles of a request that are no answer.
      max_new_tokens: of a text.
      drain_seconds: for what was accepted, after the signal to end.
    """

    k: int = 10
    answers: tuple[str, ...] = ANSWERS
    batch: int = BATCHES[-1]
    queue: int = 256
    max_delay: float = 0.005
    timeout: float = 10.0
    retry_after: int = 1
    poll_seconds: float = 1.0
    body_bytes: int = 256 * 1024
    body_seconds: float = 10.0
    idle_seconds: int = 150
    connections: int = 1024
    exclude: int = 64
    max_new_tokens: int = 128
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        whole("k", self.k, 1, MOST_BEAMS)
        for name in ("queue", "body_bytes", "idle_seconds", "connections", "max_new_tokens", "retry_after"):
            whole(name, getattr(self, name), 1)
        for name in ("max_delay", "timeout", "poll_seconds", "body_seconds", "drain_seconds"):
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise UserError(f"{name} must be a number of seconds, got {value!r}.")
        if self.batch not in BATCHES:
            raise UserError(f"batch must be one of {', '.join(map(str, BATCHES))}, got {self.batch!r}.")
        if wrong := [answers for answers in self.answers if answers not in ANSWERS] or not self.answers:
            raise UserError(f"answers must be some of {', '.join(ANSWERS)}, got {wrong if self.answers else 'none'}.")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Users at once, for which programs are compiled."""
        return tuple(size for size in BATCHES if size <= self.batch)

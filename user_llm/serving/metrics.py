"""What Prometheus reads of a server."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

MEDIA_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_USERS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The collectors of one server, in a registry of their own.

    Attributes:
      requests, seconds: of each route.
      turned_away: requests that a lane did not take ("full") or did not get to in time ("late").
      ready, items_version: of the server.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "user_llm_requests", "Requests answered.", ["route", "method", "status"], registry=registry
        )
        self.seconds = Histogram(
            "user_llm_request_seconds",
            "From a request's head to its answer.",
            ["route"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._users = Histogram(
            "user_llm_batch_users", "Users answered at once.", ["lane"], registry=registry, buckets=_USERS
        )
        self._waited = Histogram(
            "user_llm_queue_seconds", "How long a batch's oldest waited.", ["lane"], registry=registry, buckets=_SECONDS
        )
        self._took = Histogram(
            "user_llm_batch_seconds", "How long a batch took.", ["lane"], registry=registry, buckets=_SECONDS
        )
        self._waiting = Gauge("user_llm_queue_requests", "Requests that wait.", ["lane"], registry=registry)
        self.turned_away = Counter(
            "user_llm_turned_away", "Requests that were not computed.", ["lane", "why"], registry=registry
        )
        self.ready = Gauge("user_llm_ready", "1 while requests are answered.", registry=registry)
        self.items_version = Gauge("user_llm_items_version", "Of what may be answered.", registry=registry)

    def observer(self, lane: str) -> Callable[[int, float, float], None]:
        """What a lane's `Batcher` tells of its batches."""
        users, waited, took = (metric.labels(lane) for metric in (self._users, self._waited, self._took))

        def observe(count: int, oldest: float, seconds: float) -> None:
            users.observe(count)
            waited.observe(oldest)
            took.observe(seconds)

        return observe

    def watch(self, lane: str, waiting: Callable[[], int]) -> None:
        """Reads how many wait in a lane whenever it is asked."""
        self._waiting.labels(lane).set_function(waiting)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)

"""Records on a server that machines share, by Redis or Valkey."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from user_llm.errors import UserError
from user_llm.store.engine import Pair, StoreError

_PREFIX = b"user_llm/"
_SOME = 1000  # keys of a command
_PATIENCE = 60  # seconds for an answer
_WRITING = ("aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress")
_REPLACE = """
if (redis.call('GET', KEYS[1]) or '') == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2]) return 1 end
return 0
"""


class RedisEngine:
    """See `Engine`. How soon what is written is on the server's disk is a setting of the server (`appendfsync`).

    Nothing is sent twice: of a change that ends in an error nobody knows whether it was made.

    Args:
      address: as "redis://host:6379/0"; records of several stores lie in several databases.

    Raises:
      UserError: there is no such server.
    """

    longest_key = 1 << 20

    def __init__(self, address: str):
        try:
            import redis  # an extra
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise UserError(
                f"{address}: a store on a server needs the package redis: pip install user-llm[redis]"
            ) from None
        self._address, self._errors = address, (redis.RedisError, ValueError)
        with self._told():
            once = Retry(NoBackoff(), 0)
            self._client: Any = redis.Redis.from_url(address, retry=once, socket_timeout=_PATIENCE)
            self._client.ping()
            self._replace = self._client.register_script(_REPLACE)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise StoreError(f"{self._address}: {error}") from error

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `Engine`."""
        with self._told():
            return self._client.mget([_PREFIX + key for key in keys]) if keys else []

    def put_many(self, records: Iterable[Pair]) -> None:
        """See `Engine`."""
        named = {_PREFIX + key: record for key, record in records}
        if named:
            with self._told():
                self._client.mset(named)

    def replace(self, key: bytes, old: bytes | None, new: bytes) -> bool:
        """See `Engine`."""
        with self._told():
            return bool(self._replace(keys=[_PREFIX + key], args=[old or b"", new]))

    def delete_many(self, keys: Sequence[bytes]) -> int:
        """See `Engine`."""
        with self._told():
            return int(self._client.delete(*(_PREFIX + key for key in keys))) if keys else 0

    def names(self) -> Iterator[bytes]:
        """See `Engine`; in no order, each once."""
        told: set[bytes] = set()  # the server may name a key twice
        with self._told():
            for key in self._client.scan_iter(match=_PREFIX + b"*", count=_SOME):
                if key not in told:
                    told.add(key)
                    yield key[len(_PREFIX) :]

    def count(self) -> int:
        """See `Engine`."""
        return sum(1 for _ in self.names())

    def compact(self) -> None:
        """See `Engine`: has the server write what files it keeps anew, and waits for it."""
        with self._told():
            settings = self._client.config_get("appendonly", "save")
            if settings.get("appendonly") == "yes":
                self._client.bgrewriteaof()
            if settings.get("save"):
                self._client.bgsave(schedule=True)
            while any(self._client.info("persistence").get(name) for name in _WRITING):
                time.sleep(0.1)

    def close(self) -> None:
        """See `Engine`."""
        self._client.close()

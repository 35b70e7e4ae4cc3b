"""Loads an HTTP server of this machine from one asyncio process, over bare sockets: the client must not be what is
measured. Closed loop: so many clients, each of which asks again when it is answered. Open loop: requests come when a
schedule says so, whatever has become of those before, and a latency counts from that moment.
"""

import asyncio
import dataclasses
import re
import time
from collections.abc import Sequence

import numpy as np

HOST = "127.0.0.1"

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LONGEST = 120.0  # seconds that an answer is waited for


class Gone(Exception):
    """The server has closed the connection, or said nothing for too long."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request that has ended.

    Attributes:
      began, ended: seconds from the start of the load; of the open loop it began when it should have.
      status: of the answer; 0: none came.
    """

    began: float
    ended: float
    status: int


@dataclasses.dataclass(frozen=True)
class Load:
    """What was asked in a time.

    Attributes:
      asked: in the order in which they ended.
      warm, seconds: when measuring begins and ends.
      core: share of a core that the client took.
    """

    asked: Sequence[Asked]
    warm: float
    seconds: float
    core: float

    def summary(self) -> dict[str, float | int]:
        """Requests answered a second, their latency, and what became of the others; those that ended in the time."""
        ended = [one for one in self.asked if self.warm <= one.ended <= self.seconds]
        answered = [one.ended - one.began for one in ended if one.status == 200]
        turned_away = sum(one.status in (429, 503) for one in ended)
        latency = {f"p{share}_ms": round(percentile(answered, share / 100) * 1e3, 2) for share in (50, 95, 99)}
        return {
            "requests": len(ended),
            "answered_per_second": round(len(answered) / (self.seconds - self.warm), 2),
            **(latency if answered else {}),
            "turned_away": round(turned_away / max(1, len(ended)), 4),
            "too_many": round(sum(one.status == 429 for one in ended) / max(1, len(ended)), 4),
            "failed": len(ended) - len(answered) - turned_away,
            "client_core": round(self.core, 3),
        }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that `share` of them are not above; NaN of none."""
    return float(np.quantile(values, share, method="inverted_cdf")) if len(values) else float("nan")


def poisson(rate: float, seconds: float, seed: int) -> np.ndarray:
    """When requests come, `rate` a second in the mean, each whenever it likes."""
    random = np.random.default_rng(seed)
    moments = np.cumsum(random.exponential(1 / rate, int(rate * seconds + 10 * (rate * seconds) ** 0.5 + 10)))
    return moments[moments < seconds]


def request(method: str, path: str, body: bytes = b"", length: int | None = None) -> bytes:
    """A request as it is sent; a `length` other than the body's is announced where one is given."""
    head = f"{method} {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body) if length is None else length}\r\n\r\n".encode() + body


class Connection:
    """A connection that is kept from one request to the next, and made anew where the server has closed it."""

    def __init__(self, port: int):
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, *parts: bytes, pause: float = 0.0) -> tuple[int, bytes]:
        """Status and body of the answer to a request, whose parts are sent with pauses between them.

        Raises:
          Gone: there was none.
        """
        try:
            async with asyncio.timeout(_LONGEST):
                return await self._ask(parts, pause)
        except (OSError, asyncio.IncompleteReadError) as error:  # a TimeoutError is an OSError
            self.close()
            raise Gone from error
        except asyncio.CancelledError:
            self.close()  # what would still come is no answer to the next request
            raise

    async def _ask(self, parts: Sequence[bytes], pause: float) -> tuple[int, bytes]:
        if self._streams is not None and self._streams[0].at_eof():
            self.close()  # it was idle for too long
        if self._streams is None:
            self._streams = await asyncio.open_connection(HOST, self._port)
        reader, writer = self._streams
        for place, part in enumerate(parts):
            if place:
                await asyncio.sleep(pause)
            writer.write(part)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1])) if length else b""
        if b"\r\nconnection: close" in head.lower():
            self.close()
        return int(head[9:12]), body

    def close(self) -> None:
        """Hangs up."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def closed_loop(port: int, requests: Sequence[bytes], clients: int, seconds: float, warm: float) -> Load:
    """`clients` who ask all the time.

    Args:
      requests: that they take turns with.
      seconds: in all, of which the first `warm` are not measured. What is asked then is waited for.
    """
    asked, start, cpu, place = list[Asked](), time.perf_counter(), time.process_time(), 0

    async def ask_on() -> None:
        nonlocal place
        connection = Connection(port)
        while (began := time.perf_counter() - start) < seconds:
            place += 1
            status = await _status(connection, requests[place % len(requests)])
            asked.append(Asked(began, time.perf_counter() - start, status))
            if not status:
                await asyncio.sleep(0.01)  # a server that hangs up is not to be hammered
        connection.close()

    await asyncio.gather(*(ask_on() for _ in range(clients)))
    return Load(asked, warm, seconds, (time.process_time() - cpu) / (time.perf_counter() - start))


async def open_loop(
    port: int, requests: Sequence[bytes], moments: Sequence[float], seconds: float, warm: float
) -> Load:
    """Requests that come at these moments, each over a connection on which nobody waits.

    Args:
      requests, seconds, warm: as of `closed_loop`.
    """
    asked, idle, going = list[Asked](), list[Connection](), set[asyncio.Task]()
    start, cpu = time.perf_counter(), time.process_time()

    async def ask_once(moment: float, body: bytes) -> None:
        connection = idle.pop() if idle else Connection(port)
        status = await _status(connection, body)
        asked.append(Asked(moment, time.perf_counter() - start, status))
        idle.append(connection)

    for place, moment in enumerate(moments):
        if (left := moment - (time.perf_counter() - start)) > 0:
            await asyncio.sleep(left)
        task = asyncio.create_task(ask_once(float(moment), requests[place % len(requests)]))
        going.add(task)
        task.add_done_callback(going.discard)
    await asyncio.sleep(max(0.0, seconds - (time.perf_counter() - start)))
    core = (time.process_time() - cpu) / (time.perf_counter() - start)
    await asyncio.gather(*going)
    for connection in idle:
        connection.close()
    return Load(asked, warm, seconds, core)


async def _status(connection: Connection, body: bytes) -> int:
    try:
        return (await connection.ask(body))[0]
    except Gone:
        return 0

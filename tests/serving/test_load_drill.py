"""A server under load, of which one in a hundred requests is malformed, oversized, slow or cancelled each.

The drill takes ten minutes, or the seconds that USER_LLM_DRILL_SECONDS says; `make test` runs some seconds of the same.
"""

import asyncio
import collections
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.http_load import Connection, Gone, request
from tests.serving.conftest import wait_until

DRILL = float(os.environ.get("USER_LLM_DRILL_SECONDS", 600))
CLIENTS, QUEUE = 24, 15  # a batch of 8 is computed besides: now and then somebody is turned away
BODY_BYTES, BODY_SECONDS = 64 * 1024, 2.0
SETTINGS = {"answers": ["beams"], "queue": QUEUE, "body_bytes": BODY_BYTES, "body_seconds": BODY_SECONDS}
FLAT = 8e6  # bytes that memory may have grown by its trend, from the first quarter to the end
WRONG = ("malformed", "oversized", "slow", "cancelled")  # 1 % each


@pytest.fixture
def server(tmp_path):
    """A process that serves the made-up run; it has ended, whatever became of the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.serving.made_up_server", str(tmp_path / "run"), str(port)]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([*command, str(tmp_path / "users"), json.dumps(SETTINGS)], stderr=log)
    process.port, process.log = port, tmp_path / "log"
    try:
        wait_until(lambda: process.poll() is None and is_ready(port))
        yield process
    finally:
        process.kill()
        process.wait()


def is_ready(port):
    try:
        return asyncio.run(Connection(port).ask(request("GET", "/readyz")))[0] == 200
    except Gone:
        return False


def recommendations(model, count=48):
    """Bodies of requests, and what the library answers to each."""
    chance, titles = np.random.default_rng(5), list(dict.fromkeys(model.catalogue.titles[1:]))
    histories = [
        [
            {"item": titles[n], "rating": float(rating)}
            for n, rating in zip(chance.integers(0, len(titles), size), chance.integers(1, 6, size), strict=True)
        ]
        for size in chance.integers(1, 8, count)
    ]
    bodies = [json.dumps({"events": events}).encode() for events in histories]
    return list(zip(bodies, model.recommend(histories), strict=True))


def equal(answers, wanted):
    """Whether a server's items are the library's answers, which batches of other sizes round differently."""
    return [one["title"] for one in answers] == [one.text for one in wanted] and np.allclose(
        [one["score"] for one in answers], [one.score for one in wanted], rtol=1e-4
    )


MALFORMED = (
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b"[]", 422),
    (b"{}", 422),
    (b'{"events": [{"item": "Nothing", "rating": 4.0}]}', 422),
    (b'{"user": "nobody", "events": []}', 422),
    (b'{"user": "nobody"}', 404),
    (b'{"events": [{"item": "Glass 2", "rating": NaN}]}', 422),
    (b'{"events": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
)


class Load:
    """Clients that ask by chance, and what came of it."""

    def __init__(self, port, pairs):
        self.port, self.pairs = port, pairs
        self.ended = collections.Counter()  # (kind, what came of it)
        self.wrong = []  # answers other than the library's

    async def ask_until(self, end, seed):
        """A client."""
        chance, connection = random.Random(seed), Connection(self.port)
        while time.monotonic() < end:
            kind = chance.choices(("good", *WRONG), (96, 1, 1, 1, 1))[0]
            try:
                came = await getattr(self, kind)(connection, chance)
            except Gone:
                came = "gone"
            self.ended[kind, came] += 1
            if came == 429:
                await asyncio.sleep(0.02)
        connection.close()

    async def good(self, connection, chance, *, pause=None):
        """As it should be, whole or in two parts."""
        body, wanted = chance.choice(self.pairs)
        whole, cut = request("POST", "/recommend", body), chance.randrange(1, len(body))
        parts = (whole,) if pause is None else (whole[:-cut], whole[-cut:])
        status, answer = await connection.ask(*parts, pause=pause or 0.0)
        if status == 200 and not equal(json.loads(answer)["items"], wanted):
            self.wrong.append((body, answer))
        return status

    async def malformed(self, connection, chance):
        """No JSON, or not what a route wants."""
        body, wanted = chance.choice(MALFORMED)
        status, _ = await connection.ask(request("POST", "/recommend", body))
        return "refused" if status in (wanted, 429) else f"{status} of {body[:60]!r}, not {wanted}"

    async def oversized(self, connection, chance):
        """Announced as too long, or too long without being announced."""
        if chance.random() < 0.5:
            status, _ = await connection.ask(request("POST", "/recommend", b"{", length=BODY_BYTES + 1))
        else:
            head = request("POST", "/recommend").replace(b"content-length: 0", b"transfer-encoding: chunked")
            chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
            status, _ = await connection.ask(head, *[chunk] * 3)
        return "refused" if status == 413 else status

    async def slow(self, connection, chance):
        """A body that comes late, or never."""
        if chance.random() < 0.5:
            return await self.good(connection, chance, pause=BODY_SECONDS / 8)
        body, _ = chance.choice(self.pairs)
        status, _ = await connection.ask(request("POST", "/recommend", body[:-1], length=len(body)))
        return "refused" if status == 408 else status

    async def cancelled(self, connection, chance):
        """Hangs up before the answer, or just when it comes."""
        try:
            async with asyncio.timeout(chance.uniform(0, 0.1)):
                return await self.good(connection, chance)
        except TimeoutError:
            return "hung up"


async def load(process, pairs, seconds):
    """What came of all requests, and memory over time as (seconds, bytes)."""
    begin = time.monotonic()
    under = Load(process.port, pairs)
    clients = asyncio.gather(*(under.ask_until(begin + seconds, seed) for seed in range(CLIENTS)))
    memory = []
    while not clients.done():
        memory.append((time.monotonic() - begin, resident(process.pid)))
        await asyncio.sleep(seconds / 200)
    await clients
    return under, memory


def resident(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024


def growth(memory, seconds):
    """Bytes by which memory has grown since the first quarter, by the line of least squares."""
    times, sizes = np.array([one for one in memory if one[0] >= seconds / 4]).T
    return np.polyfit(times, sizes, 1)[0] * seconds * 3 / 4


@pytest.mark.timeout(DRILL + 600)
@pytest.mark.parametrize("seconds", [8.0, pytest.param(DRILL, marks=pytest.mark.drill, id="drill")])
def test_what_is_wrong_of_some_requests_harms_no_other(server, model, seconds):
    under, memory = asyncio.run(load(server, recommendations(model), seconds))
    ended = under.ended
    expected = {
        *(("good", status) for status in (200, 429)),
        *((kind, "refused") for kind in ("malformed", "oversized", "slow")),
        *(("slow", status) for status in (200, 429)),
        *(("cancelled", came) for came in (200, 429, "hung up")),
    }
    assert {*ended} <= expected, ended
    assert {("good", 200), *((kind, "refused") for kind in ("malformed", "oversized", "slow"))} <= {*ended}, ended
    assert ended["cancelled", "hung up"]
    assert not under.wrong, under.wrong[:3]
    assert growth(memory, seconds) < FLAT, (memory[len(memory) // 4], memory[-1], sum(ended.values()))
    server.send_signal(signal.SIGTERM)
    assert server.wait(30) == 0
    log = server.log.read_text()
    assert '"level": "error"' not in log
    assert "Traceback" not in log


def test_memory_that_grows_is_seen():
    times = np.linspace(0, 600, 201)
    noise = np.random.default_rng(0).normal(0, 2e6, 201)
    full = np.minimum(times / 100, 1) * 3e8  # what fills in the first quarter is no leak
    assert growth([*zip(times, 9e8 + full + noise, strict=True)], 600) < FLAT
    assert growth([*zip(times, 9e8 + full + noise + 3e4 * times, strict=True)], 600) > FLAT

"""A server of a finished run under load, and behind the same server code `transformers`' beam search.

Each server is a process on a port of its own of this machine; one asyncio process, this one, asks it (http_load.py).
"""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.http_load import Connection, Gone, Load, closed_loop, open_loop, poisson, request
from benchmarks.protocol import ContenderFailed, Unavailable, environment, failure, memory, torch_python
from benchmarks.serving_report import OURS, PEER, TEXT_PEER
from user_llm.serving.settings import Settings

CLIENTS = (1, 8, 64, 192)
"""Of the closed loop. Of the last more wait than a batch takes, and fewer than are turned away: the most a second."""
PEER_CLIENTS = (1, 8)
RATES = (0.7, 1.5)
"""Of the open loop, as shares of the capacity."""

_REQUESTS = 2000  # that are asked in turns
_WARM = 1 / 6  # of a row's seconds, which are not measured
_FILLS = 4 / 3  # of them at most, where the queue has to fill up before it is as full as it gets
_READY = 600.0  # a first start compiles


class Server:
    """A process that serves.

    Attributes:
      port: where.
      settings: its defaults, which the command keeps.
    """

    settings = Settings()

    def __init__(self, process: subprocess.Popen, port: int):
        self.process, self.port = process, port

    def get(self, path: str) -> Any:
        """What a route answers.

        Raises:
          ContenderFailed: not what was asked for.
        """
        status, body = asyncio.run(Connection(self.port).ask(request("GET", path)))
        if status != 200:
            raise ContenderFailed(f"GET {path} is answered with {status}: {body[:200].decode(errors='replace')}")
        return body.decode() if path == "/metrics" else json.loads(body)

    def batches(self) -> tuple[float, float]:
        """How many were answered, and in how many batches, since the start."""
        for family in text_string_to_metric_families(self.get("/metrics")):
            if family.name == "user_llm_batch_users":
                found = {one.name: one.value for one in family.samples if one.labels["lane"] == "recommend"}
                return found["user_llm_batch_users_sum"], found["user_llm_batch_users_count"]
        raise ContenderFailed("/metrics has no user_llm_batch_users: is this a server of ours?")

    def is_ready(self) -> bool:
        """Whether it answers."""
        with contextlib.suppress(Gone):
            return asyncio.run(Connection(self.port).ask(request("GET", "/readyz")))[0] == 200
        return False


@contextlib.contextmanager
def started(command: Sequence[str]) -> Iterator[Server]:
    """A server, from when it is ready; a signal ends it.

    Args:
      command: to which the port is added as `--port=`.

    Raises:
      ContenderFailed: it has ended before, with what it said last.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {name: value for name, value in environment("default").items() if name != "USER_LLM_TOKEN"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([*command, f"--port={port}"], env=variables, stdout=log, stderr=log)
        try:
            server, end = Server(process, port), time.monotonic() + _READY
            while not server.is_ready():
                if process.poll() is not None or time.monotonic() > end:
                    process.kill()
                    raise failure(process.wait(), log)
                time.sleep(0.1)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def histories(server: Server, count: int = _REQUESTS, seed: int = 0) -> list[bytes]:
    """Requests about users who have met items by chance, as many as are read."""
    info, titles = server.get("/info"), list(dict.fromkeys(server.get("/map")["titles"]))
    random, length = np.random.default_rng(seed), min(info["history_length"], len(titles))

    def ask() -> bytes:
        events: list[dict[str, Any]] = [{"item": titles[n]} for n in random.choice(len(titles), length, replace=False)]
        if info["ratings"]:
            for event, rating in zip(events, random.choice(info["ratings"], length), strict=True):
                event["rating"] = float(rating)
        if info["reads_times"]:
            for event, moment in zip(events, np.sort(random.integers(0, 10**7, length)), strict=True):
                event["time"] = float(moment)
        now = {"now": 2e7} if info["reads_times"] == "asked" else {}
        return request("POST", "/recommend", json.dumps({"events": events, "answers": "beams", **now}).encode())

    return [ask() for _ in range(count)]


def measure_serving(run: Path, seconds: float) -> list[dict[str, Any]]:
    """Rows of a finished run, ours first; a peer's is one with the reason where it cannot run here.

    Args:
      seconds: of a row.
    """
    command = [sys.executable, "-m", "user_llm.serving.serve", f"--workdir={run}", "--answers", "beams"]
    with started(command) as server:
        rows = _loaded(server, run.name, seconds)
    for peer, flags in ((PEER, []), (TEXT_PEER, ["--text"])):
        try:
            command = [str(torch_python()), "-m", "benchmarks.contenders.transformers_server", f"--workdir={run}"]
            with started([*command, *flags]) as server:
                rows += [_closed(server, histories(server), run.name, peer, count, seconds) for count in PEER_CLIENTS]
        except (Unavailable, ContenderFailed) as error:
            rows.append({"run": run.name, "contender": peer, "skipped": str(error)})
    return rows


def _loaded(server: Server, name: str, seconds: float) -> list[dict[str, Any]]:
    requests = histories(server)
    rows = [_closed(server, requests, name, OURS, clients, seconds) for clients in CLIENTS]
    capacity = max(row["answered_per_second"] for row in rows)
    if not capacity:
        raise ContenderFailed(f"nothing was answered within {seconds:g} s: give a row more with --seconds=")
    return rows + [_open(server, requests, name, share, capacity, seconds) for share in RATES]


def _closed(
    server: Server, requests: Sequence[bytes], name: str, contender: str, clients: int, seconds: float
) -> dict[str, Any]:
    setting = {"run": name, "contender": contender, "load": "closed", "clients": clients}
    return _row(server, setting, closed_loop(server.port, requests, clients, seconds, _WARM * seconds))


def _open(
    server: Server, requests: Sequence[bytes], name: str, share: float, capacity: float, seconds: float
) -> dict[str, Any]:
    rate, settings = share * capacity, server.settings
    # Above capacity latencies grow until the queue is full, or who waits is too late: that they grow is no news.
    fill = (
        min(settings.queue / max(rate - capacity, 1e-9), 2 * settings.timeout, _FILLS * seconds) if share > 1 else 0.0
    )
    warm, seconds = _WARM * seconds + fill, seconds + fill
    longest_wait = min(settings.queue / capacity, settings.timeout) + settings.batch / capacity
    setting = {"run": name, "contender": OURS, "load": "open", "of_capacity": share, "asked_per_second": round(rate, 2)}
    setting |= {"capacity_per_second": capacity, "longest_wait_ms": round(longest_wait * 1e3, 1)}
    return _row(server, setting, open_loop(server.port, requests, poisson(rate, seconds, 1), seconds, warm))


def _row(server: Server, setting: dict[str, Any], load: Any) -> dict[str, Any]:
    process = f"{server.process.pid}"
    Path("/proc", process, "clear_refs").write_text("5")  # the peak is of this row, not of what compiled
    users, batches = server.batches()
    done: Load = asyncio.run(load)
    more_users, more_batches = (now - before for now, before in zip(server.batches(), (users, batches), strict=True))
    row = {
        **setting,
        **done.summary(),
        "mean_batch": round(more_users / max(1, more_batches), 2),
        "peak_mb": round(memory(f"{process}/status", "VmHWM") * 1e3),
    }
    what = f"{setting['clients']} clients" if "clients" in setting else f"{setting['of_capacity']:.0%} of capacity"
    print(f"{setting['contender']}, {what}: {row['answered_per_second']} a second", file=sys.stderr, flush=True)
    return row

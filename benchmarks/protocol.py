"""A contender is a process that sets itself up, then does one round whenever it is asked.

One process each, because peak memory belongs to a process and allocators are chosen before one starts; rounds on
request, because on a shared machine only rounds taken in turns compare. Messages are JSON lines: the child says
`versions` and `facts` when it is ready, answers each `round`, and leaves at the end of its input. Standard library
only: the peers' environment runs the child's side too.
"""

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

from user_llm.launch import malloc

REPOSITORY = Path(__file__).resolve().parents[1]

MALLOC = {"default": {}, "tuned": malloc.TUNED}


class Unavailable(RuntimeError):
    """A contender cannot run here: its environment cannot be made, or there is no room for its files."""


class ContenderFailed(RuntimeError):
    """A contender's process ended without an answer."""


def main_python() -> Path:
    """The interpreter of our environment."""
    return Path(sys.executable)


def torch_python() -> Path:
    """The same, where it has PyTorch.

    Raises:
      Unavailable: it has not.
    """
    if importlib.util.find_spec("torch") is None:
        raise Unavailable("PyTorch is not installed; the extra `test` has it on Python 3.11.")
    return main_python()


def environment(malloc: str) -> dict[str, str]:
    """A process' environment: ours, with the settings of `MALLOC[malloc]`, and without accelerators."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    return {**variables, **MALLOC[malloc], "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def available_bytes() -> int:
    """Memory that is free, or would be given back when asked for. A contender may take this much, and no more."""
    return int(memory("meminfo", "MemAvailable") * 1e9)


def failure(code: int, log: IO[str]) -> ContenderFailed:
    """What a process said last, for an exit code and all that it wrote."""
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    return ContenderFailed(f"ended with {code}: {' | '.join(lines[-2:])}")


class Work(NamedTuple):
    """What a contender does: its `round`, and `facts` (JSON values) that its row of the results carries."""

    round: Callable[[], float]
    facts: dict[str, Any]


class Contender:
    """The parent's side: starts `python -m module` with `options`, and waits until it is ready for rounds.

    Args:
      python: interpreter of the contender's environment.
      module: calls `serve`.
      options: JSON values, handed to the contender.
      malloc: a key of `MALLOC`.
      seconds: how long it may take for all its answers together; None: as long as it wants.

    Raises:
      ContenderFailed: with the last lines the process wrote, or that its time was up.
    """

    def __init__(
        self, python: Path, module: str, options: dict[str, Any], malloc: str, *, seconds: float | None = None
    ):
        self._seconds = self._seconds_left = seconds
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed in close()
        self._process = subprocess.Popen(
            [str(python), "-m", module, json.dumps(options)],
            cwd=REPOSITORY,
            env=environment(malloc),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        ready = self._answer()
        self.versions: dict[str, str] = ready["versions"]
        self.facts: dict[str, Any] = ready["facts"]

    def round(self) -> dict[str, float]:
        """`seconds` of one round and its `value`; of memory so far `peak_gb` and `peak_above_imports_gb`, and
        `private_above_imports_gb` that it now holds for itself, without pages of mapped files.
        """
        try:
            self._process.stdin.write("round\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        return self._answer()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        if self._seconds_left is None:
            line = self._process.stdout.readline()
        else:
            begin, alarm = time.perf_counter(), threading.Timer(self._seconds_left, self._process.kill)
            alarm.start()
            line = self._process.stdout.readline()
            alarm.cancel()
            self._seconds_left -= time.perf_counter() - begin
        return json.loads(line) if line else self._fail()

    def _fail(self):
        code = self._process.wait()
        if self._seconds_left is not None and self._seconds_left <= 0:
            raise ContenderFailed(f"took more than {self._seconds:,.0f} seconds")
        raise failure(code, self._log)


def serve(
    setup: Callable[[dict[str, Any]], Callable[[], float] | Work], packages: tuple[str, ...], *, warm: bool = True
) -> None:
    """The child's side. Call it when everything is imported.

    Args:
      setup: from the options makes the round, which returns a number worth keeping (a loss, a count), or a `Work`.
      packages: whose versions are reported.
      warm: whether to do two rounds before the first that is asked for; not where the first ones are measured too.
    """
    # Libraries print; the messages get the real standard output for themselves.
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    imported, private = memory("self/status", "VmRSS"), memory("self/status", "RssAnon")
    # Dense logits can ask for more than there is: fail here, by name, before the kernel kills somebody else.
    available = available_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (available, available))
    work = setup(json.loads(sys.argv[1]))
    one_round, facts = work if isinstance(work, Work) else (work, {})
    if warm:
        one_round()  # compiles
        # What a compiler used is no memory of a step: return it, and start the count of the peak anew.
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    if warm:
        one_round()  # fills pools and caches again
    versions = {package: importlib.metadata.version(package) for package in packages}
    print(json.dumps({"versions": versions, "facts": facts}), file=messages, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        value = one_round()
        seconds, peak = time.perf_counter() - start, memory("self/status", "VmHWM")
        answer = {
            "seconds": seconds,
            "value": value,
            "peak_gb": peak,
            "peak_above_imports_gb": peak - imported,
            "private_above_imports_gb": memory("self/status", "RssAnon") - private,
        }
        print(json.dumps(answer), file=messages, flush=True)


def memory(file: str, field: str) -> float:
    """GB (10⁹ bytes) of a field under /proc: VmRSS (resident now), VmHWM (at its highest), RssAnon (now, no files)."""
    # Not getrusage: its maximum is inherited from the parent through exec.
    for line in Path("/proc", file).read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e9
    raise RuntimeError(f"/proc/{file} has no {field}; benchmarks run on Linux.")

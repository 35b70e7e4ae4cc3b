"""A contender is a process that sets itself up, then does one round whenever it is asked.

One process each, because peak memory belongs to a process and allocators are chosen before one starts; rounds on
request, because on a shared machine only rounds taken in turns compare. Messages are JSON lines: the child says
`ready`, answers each `round`, and leaves at the end of its input. Standard library only: RecTools' environment
runs the child's side too.
"""

import ctypes
import importlib.metadata
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from user_llm.launch import malloc

REPOSITORY = Path(__file__).resolve().parents[1]

MALLOC = {"default": {}, "tuned": malloc.TUNED}


class ContenderFailed(RuntimeError):
    """A contender's process ended without an answer."""


class Contender:
    """The parent's side: starts `python -m module` with `options`, and waits until it has compiled and is warm.

    Args:
      python: interpreter of the contender's environment.
      module: calls `serve`.
      options: JSON values, handed to the contender.
      malloc: a key of `MALLOC`.

    Raises:
      ContenderFailed: with the last lines the process wrote.
    """

    def __init__(self, python: Path, module: str, options: dict[str, Any], malloc: str):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
        environment.update(MALLOC[malloc], JAX_PLATFORMS="cpu", CUDA_VISIBLE_DEVICES="")
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed in close()
        self._process = subprocess.Popen(
            [str(python), "-m", module, json.dumps(options)],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.versions: dict[str, str] = self._answer()["versions"]

    def round(self) -> dict[str, float]:
        """`seconds` of one round, its `value`, and so far `peak_gb` and `peak_above_imports_gb` of memory."""
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
        line = self._process.stdout.readline()
        return json.loads(line) if line else self._fail()

    def _fail(self):
        code = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        raise ContenderFailed(f"ended with {code}: {' | '.join(lines[-2:])}")


def serve(setup: Callable[[dict[str, Any]], Callable[[], float]], packages: tuple[str, ...]) -> None:
    """The child's side. Call it when everything is imported.

    Args:
      setup: from the options makes the round, which returns a number worth keeping (a loss, a count).
      packages: whose versions are reported.
    """
    # Libraries print; the messages get the real standard output for themselves.
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    imported = _memory("self/status", "VmRSS")
    # Dense logits can ask for more than there is: fail here, by name, before the kernel kills somebody else.
    available = int(_memory("meminfo", "MemAvailable") * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (available, available))
    one_round = setup(json.loads(sys.argv[1]))
    one_round()  # compiles
    # What a compiler used is no memory of a step: return it, and start the count of the peak anew.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    one_round()  # fills pools and caches again
    versions = {package: importlib.metadata.version(package) for package in packages}
    print(json.dumps({"versions": versions}), file=messages, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        value = one_round()
        seconds, peak = time.perf_counter() - start, _memory("self/status", "VmHWM")
        answer = {"seconds": seconds, "value": value, "peak_gb": peak, "peak_above_imports_gb": peak - imported}
        print(json.dumps(answer), file=messages, flush=True)


def _memory(file: str, field: str) -> float:
    """GB (10⁹ bytes) of a field under /proc, such as VmRSS (resident now) and VmHWM (at its highest)."""
    # Not getrusage: its maximum is inherited from the parent through exec.
    for line in Path("/proc", file).read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e9
    raise RuntimeError(f"/proc/{file} has no {field}; benchmarks run on Linux.")

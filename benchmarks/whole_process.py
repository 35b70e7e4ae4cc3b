"""Time and peak memory of a command, from its start to its end."""

import resource
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress

from benchmarks.protocol import REPOSITORY, ContenderFailed, available_bytes, environment, failure, memory

_INTERVAL = 0.02  # seconds


def run_whole(command: Sequence[str], *, seconds: float) -> dict[str, float]:
    """Runs a command; its `seconds`, its `core_seconds`, and `peak_gb` of its process.

    Args:
      command: the words of it.
      seconds: how long it may take.

    Raises:
      ContenderFailed: with the last lines it wrote, or that its time was up.
    """
    with tempfile.TemporaryFile("w+") as log:
        available, begin, peak, before = available_bytes(), time.perf_counter(), 0.0, _core_seconds()
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment("default"), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (available, available))
        while process.poll() is None:
            if time.perf_counter() - begin > seconds:
                process.kill()
                process.wait()
                raise ContenderFailed(f"took more than {seconds:,.0f} seconds")
            with suppress(RuntimeError):  # it has just ended
                peak = memory(f"{process.pid}/status", "VmHWM")
            time.sleep(_INTERVAL)
        taken = time.perf_counter() - begin
        if process.returncode:
            raise failure(process.returncode, log)
    return {"seconds": taken, "core_seconds": _core_seconds() - before, "peak_gb": peak}


def _core_seconds() -> float:
    """Of all cores, by the processes that this one has started and seen end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

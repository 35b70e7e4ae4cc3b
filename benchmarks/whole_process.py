"""Time and peak memory of a command, from its start to its end."""

import os
import resource
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence

from benchmarks.protocol import REPOSITORY, ContenderFailed, available_bytes, environment, failure


def run_whole(command: Sequence[str], *, seconds: float) -> dict[str, float]:
    """Runs a command; its `seconds`, and `peak_gb`, which is at least what this process holds.

    Args:
      command: the words of it.
      seconds: how long it may take.

    Raises:
      ContenderFailed: with the last lines it wrote, or that its time was up.
    """
    with tempfile.TemporaryFile("w+") as log:
        available, begin = available_bytes(), time.perf_counter()
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment("default"), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (available, available))
        alarm = threading.Timer(seconds, process.kill)
        alarm.start()
        _, status, usage = os.wait4(process.pid, 0)
        alarm.cancel()
        process.returncode, taken = os.waitstatus_to_exitcode(status), time.perf_counter() - begin
        if taken >= seconds:
            raise ContenderFailed(f"took more than {seconds:,.0f} seconds")
        if process.returncode:
            raise failure(process.returncode, log)
    return {"seconds": taken, "peak_gb": usage.ru_maxrss * 1024 / 1e9}

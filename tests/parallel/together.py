"""Starts the processes of one run, and reads what each has printed."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def answers(script: Path, *arguments: str | Path, count: int, devices: int) -> list[dict]:
    """What each of `count` processes with so many CPU devices says last, in JSON.

    A script is given the port of process 0, and its own number, before the arguments.
    """
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(script), str(port)]
    started = [
        subprocess.Popen([*command, str(index), *map(str, arguments)], env=environment, stdout=subprocess.PIPE)
        for index in range(count)
    ]
    try:
        printed = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count
    return [json.loads(text.splitlines()[-1]) for text in printed]

"""Runs of several CPU processes on this machine, each started with the command that a user gives on a host."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.harness import results

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = Path(__file__).with_name("tiny.py")
MESSAGE = "error: another process of this run has ended"
NOTICED = 60  # seconds, until the others have ended too
GIVEN_UP = 280  # seconds, after which a run of two hangs


def command(workdir: Path, data_dir: Path, *flags: str) -> list[str]:
    return [
        *(sys.executable, "-m", "user_llm.main", f"--config={CONFIG}", f"--workdir={workdir}"),
        *(f"--config.data.data_dir={data_dir}", "--gin=Host.tensorboard=False", *flags),
    ]


def environment(devices: int) -> dict[str, str]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags}


def log(workdir: Path, index: int) -> Path:
    return workdir.with_name(f"{workdir.name}.{index}.log")


@contextlib.contextmanager
def started(
    workdir: Path, data_dir: Path, flags: list[str], *, count: int = 2, devices: int = 1
) -> Iterator[list[subprocess.Popen]]:
    """The same command in `count` processes with so many devices each; their logs are beside the workdir."""
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    processes = []
    for index in range(count):
        own = [f"--coordinator={address}", f"--num_processes={count}", f"--process_id={index}"] if count > 1 else []
        with log(workdir, index).open("w") as output:
            processes.append(
                subprocess.Popen(
                    command(workdir, data_dir, *flags, *own),
                    **dict(cwd=REPOSITORY, env=environment(devices), stdout=output, stderr=subprocess.STDOUT),
                )
            )
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def finish(workdir: Path, data_dir: Path, flags: list[str], *, count: int = 2, devices: int = 1) -> Path:
    """A run to its end."""
    with started(workdir, data_dir, flags, count=count, devices=devices) as processes:
        for index, process in enumerate(processes):
            assert process.wait(timeout=GIVEN_UP * max(1, count // 2)) == 0, log(workdir, index).read_text()[-4000:]
    return workdir


def wait_until(happened: Callable[[], object], workdir: Path, seconds: float = GIVEN_UP) -> None:
    """Until something is there."""
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, log(workdir, 0).read_text()[-4000:]
        time.sleep(0.02)


def has_step(workdir: Path, stage: str, step: int) -> bool:
    """Whether the metrics of a step are written."""
    metrics = workdir / stage / "metrics.jsonl"
    rows = metrics.read_text().splitlines() if metrics.exists() else []
    return bool(rows) and json.loads(rows[-1])["step"] >= step


def has_checkpoint(workdir: Path, stage: str, step: int) -> bool:
    """Whether a step is on disk as a whole: Orbax writes behind the training, and renames the folder at the end."""
    folder = workdir / stage / "checkpoints"
    return any(path.name.isdecimal() and int(path.name) >= step for path in folder.glob("*"))


def assert_same(workdir: Path, reference: Path, *files: str) -> None:
    """To the bit."""
    assert results(workdir) == results(reference)
    for name in ("predictions.jsonl", "catalogue/title_bytes.npy", *files):
        assert (workdir / name).read_bytes() == (reference / name).read_bytes(), name

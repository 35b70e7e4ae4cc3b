"""Two CPU processes are one run: the results of one process with two devices, also after each of the two was killed."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import results

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = Path(__file__).with_name("tiny.py")
MESSAGE = "error: another process of this run has ended"
NOTICED = 60  # seconds, until the other has ended too
GIVEN_UP = 280  # seconds, after which a run hangs

# Parameters in slices on both processes, two exports, and the states of texts that both compute and one keeps.
EVERYTHING = [
    *("--config.compute.mesh.data=1", "--config.compute.mesh.fsdp=2", "--config.strategy=lora"),
    *("--config.integration.every=1", "--config.integration.first_layer=1", "--config.lora.first_layer=1"),
    *(f"--config.training.{stage}.steps=6" for stage in ("llm", "encoder", "user_llm")),
    "--config.evaluation.batch_size=48",
    "--config.data.shards=2",  # each process reads half of the users
]
ENCODER = ["--config.stages=('encoder',)"]  # batches in stripes


def command(workdir: Path, data_dir: Path, *flags: str) -> list[str]:
    return [
        *(sys.executable, "-m", "user_llm.main", f"--config={CONFIG}", f"--workdir={workdir}"),
        *(f"--config.data.data_dir={data_dir}", "--gin=Host.tensorboard=False", *flags),
    ]


def environment(devices: int) -> dict[str, str]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags}


def run_one(workdir: Path, data_dir: Path, flags: list[str]) -> Path:
    """A run of one process with two devices."""
    done = subprocess.run(
        command(workdir, data_dir, *flags),
        **dict(cwd=REPOSITORY, env=environment(2), capture_output=True, text=True, timeout=GIVEN_UP),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return workdir


@contextlib.contextmanager
def pair(workdir: Path, data_dir: Path, flags: list[str]) -> Iterator[list[subprocess.Popen]]:
    """The same command on two processes with a device each; their logs are beside the workdir."""
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    started = []
    for index in range(2):
        own = f"--coordinator={address}", "--num_processes=2", f"--process_id={index}"
        with log(workdir, index).open("w") as output:
            started.append(
                subprocess.Popen(
                    command(workdir, data_dir, *flags, *own),
                    **dict(cwd=REPOSITORY, env=environment(1), stdout=output, stderr=subprocess.STDOUT),
                )
            )
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def log(workdir: Path, index: int) -> Path:
    return workdir.with_name(f"{workdir.name}.{index}.log")


def run_pair(workdir: Path, data_dir: Path, flags: list[str]) -> Path:
    with pair(workdir, data_dir, flags) as started:
        for index, process in enumerate(started):
            assert process.wait(timeout=GIVEN_UP) == 0, log(workdir, index).read_text()[-4000:]
    return workdir


def wait_for_step(workdir: Path, stage: str, step: int) -> None:
    metrics, until = workdir / stage / "metrics.jsonl", time.monotonic() + GIVEN_UP
    while True:
        rows = metrics.read_text().splitlines() if metrics.exists() else []
        if rows and json.loads(rows[-1])["step"] >= step:
            return
        assert time.monotonic() < until, log(workdir, 0).read_text()[-4000:]
        time.sleep(0.02)


def wait_for_checkpoint(workdir: Path, stage: str, step: int) -> None:
    """Until a step is on disk as a whole: Orbax writes behind the training, and renames the folder at the end."""
    folder, until = workdir / stage / "checkpoints", time.monotonic() + GIVEN_UP
    while not any(path.name.isdecimal() and int(path.name) >= step for path in folder.glob("*")):
        assert time.monotonic() < until, log(workdir, 0).read_text()[-4000:]
        time.sleep(0.02)


def assert_same(workdir: Path, reference: Path, *files: str) -> None:
    """To the bit: a sum of two numbers does not depend on where they come from."""
    assert results(workdir) == results(reference)
    for name in ("predictions.jsonl", "catalogue/title_bytes.npy", *files):
        assert (workdir / name).read_bytes() == (reference / name).read_bytes(), name


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.mark.drill
def test_two_processes_give_the_results_of_one_with_two_devices(tmp_path, data_dir):
    one = run_one(tmp_path / "one", data_dir, EVERYTHING)
    two = run_pair(tmp_path / "two", data_dir, EVERYTHING)
    states = "text_states/next_item/table.npy"
    assert_same(two, one, "llm/huggingface/model.safetensors", "user_llm/adapters/adapter_model.safetensors", states)
    assert "User-LLM" in log(two, 0).read_text()
    assert "User-LLM" not in log(two, 1).read_text()


@pytest.mark.drill
def test_killed_each_in_turn_and_started_again(tmp_path, data_dir):
    workdir = tmp_path / "two"
    flags = [*ENCODER, "--config.training.encoder.steps=60"]  # so that it cannot end before the signal comes
    for victim, step in ((1, 6), (0, 24)):
        with pair(workdir, data_dir, flags) as started:
            wait_for_checkpoint(workdir, "encoder", step)
            started[victim].send_signal(signal.SIGKILL)
            assert started[1 - victim].wait(timeout=NOTICED) != 0
        time.sleep(1)  # its witness outlives it
        assert MESSAGE in log(workdir, 1 - victim).read_text()
        assert not (workdir / "results.json").exists()
    run_pair(workdir, data_dir, flags)
    assert "encoder: restored step" in log(workdir, 0).read_text()
    assert_same(workdir, run_one(tmp_path / "one", data_dir, flags))


@pytest.mark.drill
def test_begun_by_one_process_and_ended_by_two(tmp_path, data_dir):
    workdir = tmp_path / "two"
    flags = [*ENCODER, "--config.data.shards=4", "--config.training.encoder.steps=60"]
    with log(workdir, 0).open("w") as output:
        begun = subprocess.Popen(
            command(workdir, data_dir, *flags),
            **dict(cwd=REPOSITORY, env=environment(2), stdout=output, stderr=subprocess.STDOUT),
        )
        wait_for_checkpoint(workdir, "encoder", 6)
        begun.kill()
        begun.wait()
    assert not (workdir / "results.json").exists()
    run_pair(workdir, data_dir, flags)
    assert "encoder: restored step" in log(workdir, 0).read_text()
    assert_same(workdir, run_one(tmp_path / "one", data_dir, flags))


def test_sigterm_to_one_stops_both_at_a_saved_step(tmp_path, data_dir):
    workdir = tmp_path / "two"
    with pair(workdir, data_dir, [*ENCODER, "--config.training.encoder.steps=100000"]) as started:
        wait_for_step(workdir, "encoder", 2)
        started[1].send_signal(signal.SIGTERM)
        assert [process.wait(timeout=NOTICED) for process in started] == [143, 143]
    assert "is saved at step" in log(workdir, 0).read_text()
    assert "Traceback" not in log(workdir, 0).read_text() + log(workdir, 1).read_text()


@pytest.mark.drill
@pytest.mark.timeout(1200)
def test_sigterm_in_the_evaluation_ends_both_and_the_same_command_goes_on(tmp_path, data_dir):
    workdir = tmp_path / "two"
    flags = ["--config.stages=('user_llm',)", "--config.encoder.init=random", "--config.training.user_llm.steps=6"]
    flags += ["--config.evaluation.batch_size=2"]  # many batches, of which few are done by then
    with pair(workdir, data_dir, [*flags, "--verbosity=1"]) as started:
        until = time.monotonic() + GIVEN_UP
        while "User-LLM: " not in log(workdir, 0).read_text():  # of two rows by beams and one by an LLM alone
            assert time.monotonic() < until, log(workdir, 0).read_text()[-4000:]
            time.sleep(0.02)
        started[1].send_signal(signal.SIGTERM)
        assert [process.wait(timeout=NOTICED) for process in started] == [143, 143]
    assert not (workdir / "results.json").exists()
    assert "Stopped. The same command goes on" in log(workdir, 0).read_text()
    assert "Traceback" not in log(workdir, 0).read_text() + log(workdir, 1).read_text()
    run_pair(workdir, data_dir, flags)
    assert_same(workdir, run_one(tmp_path / "one", data_dir, flags))

"""Two CPU processes are one run: the results of one process with two devices, also after each of the two was killed."""

import signal
import time

import pytest

from tests.end_to_end.hosts import (
    MESSAGE,
    NOTICED,
    assert_same,
    finish,
    has_checkpoint,
    has_step,
    log,
    started,
    wait_until,
)

# Parameters in slices on both processes, two exports, and the states of texts that both compute and one keeps.
EVERYTHING = [
    *("--config.compute.mesh.data=1", "--config.compute.mesh.fsdp=2", "--config.strategy=lora"),
    *("--config.integration.every=1", "--config.integration.first_layer=1", "--config.lora.first_layer=1"),
    *(f"--config.training.{stage}.steps=6" for stage in ("llm", "encoder", "user_llm")),
    "--config.evaluation.batch_size=48",
    "--config.data.shards=2",  # each process reads half of the users
]
ENCODER = ["--config.stages=('encoder',)"]  # batches in stripes


def run_one(workdir, data_dir, flags):
    """A run of one process with two devices."""
    return finish(workdir, data_dir, flags, count=1, devices=2)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.mark.drill
def test_two_processes_give_the_results_of_one_with_two_devices(tmp_path, data_dir):
    one = run_one(tmp_path / "one", data_dir, EVERYTHING)
    two = finish(tmp_path / "two", data_dir, EVERYTHING)
    states = "text_states/next_item/table.npy"
    assert_same(two, one, "llm/huggingface/model.safetensors", "user_llm/adapters/adapter_model.safetensors", states)
    assert "User-LLM" in log(two, 0).read_text()
    assert "User-LLM" not in log(two, 1).read_text()


@pytest.mark.drill
def test_killed_each_in_turn_and_started_again(tmp_path, data_dir):
    workdir = tmp_path / "two"
    flags = [*ENCODER, "--config.training.encoder.steps=60"]  # so that it cannot end before the signal comes
    for victim, step in ((1, 6), (0, 24)):
        with started(workdir, data_dir, flags) as processes:
            wait_until(lambda step=step: has_checkpoint(workdir, "encoder", step), workdir)
            processes[victim].send_signal(signal.SIGKILL)
            assert processes[1 - victim].wait(timeout=NOTICED) != 0
        time.sleep(1)  # its witness outlives it
        assert MESSAGE in log(workdir, 1 - victim).read_text()
        assert not (workdir / "results.json").exists()
    finish(workdir, data_dir, flags)
    assert "encoder: restored step" in log(workdir, 0).read_text()
    assert_same(workdir, run_one(tmp_path / "one", data_dir, flags))


@pytest.mark.drill
def test_begun_by_one_process_and_ended_by_two(tmp_path, data_dir):
    workdir = tmp_path / "two"
    flags = [*ENCODER, "--config.data.shards=4", "--config.training.encoder.steps=60"]
    with started(workdir, data_dir, flags, count=1, devices=2):
        wait_until(lambda: has_checkpoint(workdir, "encoder", 6), workdir)
    assert not (workdir / "results.json").exists()
    finish(workdir, data_dir, flags)
    assert "encoder: restored step" in log(workdir, 0).read_text()
    assert_same(workdir, run_one(tmp_path / "one", data_dir, flags))


def test_sigterm_to_one_stops_both_at_a_saved_step(tmp_path, data_dir):
    workdir = tmp_path / "two"
    with started(workdir, data_dir, [*ENCODER, "--config.training.encoder.steps=100000"]) as processes:
        wait_until(lambda: has_step(workdir, "encoder", 2), workdir)
        processes[1].send_signal(signal.SIGTERM)
        assert [process.wait(timeout=NOTICED) for process in processes] == [143, 143]
    assert "is saved at step" in log(workdir, 0).read_text()
    assert "Traceback" not in log(workdir, 0).read_text() + log(workdir, 1).read_text()


@pytest.mark.drill
@pytest.mark.timeout(1200)
def test_sigterm_in_the_evaluation_ends_both_and_the_same_command_goes_on(tmp_path, data_dir):
    workdir = tmp_path / "two"
    flags = ["--config.stages=('user_llm',)", "--config.encoder.init=random", "--config.training.user_llm.steps=6"]
    flags += ["--config.evaluation.batch_size=2"]  # many batches, of which few are done by then
    with started(workdir, data_dir, [*flags, "--verbosity=1"]) as processes:
        # of two rows by beams and one by an LLM alone
        wait_until(lambda: "User-LLM: " in log(workdir, 0).read_text(), workdir)
        processes[1].send_signal(signal.SIGTERM)
        assert [process.wait(timeout=NOTICED) for process in processes] == [143, 143]
    assert not (workdir / "results.json").exists()
    assert "Stopped. The same command goes on" in log(workdir, 0).read_text()
    assert "Traceback" not in log(workdir, 0).read_text() + log(workdir, 1).read_text()
    finish(workdir, data_dir, flags)
    assert_same(workdir, run_one(tmp_path / "one", data_dir, flags))

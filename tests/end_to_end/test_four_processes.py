"""Four CPU processes are one run: whichever is killed, whatever it was doing; and runs that move to other devices."""

import json
import signal
import time

import pytest

from tests.end_to_end.hosts import (
    GIVEN_UP,
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

pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]

PROCESSES = 4
# Whole models on each, so that an evaluation waits for nobody; an export by the lead, and one by all.
FLAGS = [
    *("--config.strategy=lora", "--verbosity=1"),
    *(f"--config.training.{stage}.steps=6" for stage in ("encoder", "user_llm")),
]

# In the order of a run: what is seen of it from outside.
MOMENTS = {
    "data build": lambda run, data: any(data.rglob(".lock")),
    "compile": lambda run, data: (run / "config.json").exists(),
    "step": lambda run, data: has_step(run, "llm", 2),
    "checkpoint": lambda run, data: any(run.glob("*/checkpoints/*tmp*")),
    "export": lambda run, data: any(run.glob("llm/huggingface*")),
    "evaluation": lambda run, data: "User-LLM: " in log(run, 0).read_text(),
}


def test_killed_at_every_stage_of_a_run_it_goes_on_to_the_same_bits(tmp_path, moments):
    workdir, data_dir = tmp_path / "run", tmp_path / "data"
    data_dir.mkdir()
    for name, happens in MOMENTS.items():
        victim = moments.randrange(PROCESSES)
        with started(workdir, data_dir, FLAGS, count=PROCESSES) as processes:
            wait_until(lambda happens=happens: happens(workdir, data_dir), workdir, 2 * GIVEN_UP)
            processes[victim].send_signal(signal.SIGKILL)
            until = time.monotonic() + NOTICED
            others = [index for index in range(PROCESSES) if index != victim]
            ends = [processes[index].wait(timeout=max(0.1, until - time.monotonic())) for index in others]
        assert 0 not in ends, (name, victim)
        time.sleep(1)  # their witnesses outlive them
        for index in others:
            assert MESSAGE in log(workdir, index).read_text(), (name, victim, index)
        assert not (workdir / "results.json").exists(), (name, victim)
    finish(workdir, data_dir, FLAGS, count=PROCESSES)
    undisturbed = finish(tmp_path / "undisturbed", data_dir, FLAGS, count=PROCESSES)
    assert_same(
        workdir,
        undisturbed,
        *("llm/huggingface/model.safetensors", "user_llm/adapters/adapter_model.safetensors"),
    )
    assert not list(workdir.rglob("*.partial"))


def test_a_run_moves_from_eight_devices_to_four_to_one_and_to_two_processes_with_four(tmp_path):
    """Parameters, optimizer and place in the data go with it: its losses are those of a run that stays, to rounding."""
    workdir, data_dir = tmp_path / "moves", tmp_path / "data"
    flags = ["--config.stages=('encoder',)", "--config.training.encoder.steps=48", "--config.encoder.dropout=0.0"]
    for devices, step in ((8, 12), (4, 24), (1, 36)):
        with started(workdir, data_dir, flags, count=1, devices=devices):
            wait_until(lambda step=step: has_checkpoint(workdir, "encoder", step), workdir)
        assert not (workdir / "results.json").exists()
    finish(workdir, data_dir, flags, count=2, devices=4)
    assert "encoder: restored step" in log(workdir, 0).read_text()
    stays = finish(tmp_path / "stays", data_dir, flags, count=1, devices=8)
    losses, expected = (losses_of(folder) for folder in (workdir, stays))
    assert losses == pytest.approx(expected, rel=1e-4)


def losses_of(workdir) -> dict[int, float]:
    """Step → loss, of the training."""
    rows = map(json.loads, (workdir / "encoder" / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}

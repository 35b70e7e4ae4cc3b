"""`metrics.jsonl` reads as one uninterrupted run, however the writing ended; TensorBoard reads the events."""

import json

import jax
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from user_llm.training.metric_writer import MetricWriter


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def folder(tmp_path):
    """A stage that wrote until step 6, with evaluations after steps 2, 4 and 6."""
    writer = MetricWriter(tmp_path / "encoder", tensorboard=False)
    for step in (2, 4, 6):
        writer.write(step, "train", {"loss": 1 / step})
        writer.write(step, "validation", {"recall@10": step / 10})
    writer.close()
    return tmp_path / "encoder"


def test_rows_come_back_as_they_were_written(folder):
    assert rows(folder)[:2] == [
        {"step": 2, "kind": "train", "loss": 0.5},
        {"step": 2, "kind": "validation", "recall@10": 0.2},
    ]
    assert [row["step"] for row in rows(folder)] == [2, 2, 4, 4, 6, 6]


def test_a_row_is_in_the_file_at_once(tmp_path):
    writer = MetricWriter(tmp_path, tensorboard=False)
    writer.write(1, "train", {"loss": 2.0})
    assert len(rows(tmp_path)) == 1
    writer.close()


def test_a_resumed_stage_cuts_off_the_steps_that_were_lost(folder):
    writer = MetricWriter(folder, restored_step=4, tensorboard=False)
    assert [row["step"] for row in rows(folder)] == [2, 2, 4, 4]
    writer.write(6, "train", {"loss": 7.0})
    writer.close()
    assert [row["step"] for row in rows(folder)] == [2, 2, 4, 4, 6]
    assert rows(folder)[-1]["loss"] == 7.0


def test_a_stage_that_begins_again_begins_an_empty_file(folder):
    MetricWriter(folder, tensorboard=False).close()
    assert rows(folder) == []


def test_a_half_line_is_dropped(folder):
    path = folder / "metrics.jsonl"
    whole = rows(folder)
    path.write_text(path.read_text()[:-9])
    writer = MetricWriter(folder, restored_step=6, tensorboard=False)
    assert rows(folder) == whole[:-1]
    assert not writer.restored(6)  # its evaluation is the half line, and is measured again
    writer.write(6, "validation", {"recall@10": 0.6})
    writer.close()
    assert rows(folder) == whole


def test_only_evaluations_before_the_checkpoint_are_restored(folder):
    writer = MetricWriter(folder, restored_step=5, tensorboard=False)
    assert [step for step in range(8) if writer.restored(step)] == [2, 4]
    writer.close()


def test_only_the_first_host_writes(folder, monkeypatch):
    before = (folder / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writer = MetricWriter(folder, restored_step=4)
    assert writer.restored(4)
    writer.write(6, "train", {"loss": 7.0})
    writer.close()
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


def tensorboard(folder):
    """Tag → (step, value) of what TensorBoard shows of a folder."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_the_events(tmp_path):
    writer = MetricWriter(tmp_path)
    for step in (2, 4):
        writer.write(step, "train", {"loss": 1 / step, "loss/item": step})
    writer.write(4, "validation", {"recall@10": 0.25})
    writer.close()
    assert tensorboard(tmp_path) == {
        "train/loss": [(2, 0.5), (4, 0.25)],
        "train/loss/item": [(2, 2.0), (4, 4.0)],
        "validation/recall@10": [(4, 0.25)],
    }


@pytest.mark.parametrize("before", ["events", "events cut short", "none"])
def test_tensorboard_shows_one_run_however_often_it_was_resumed(folder, before):
    """Whether the killed process had written its events, half of them, or (as it buffers them) none."""
    if before != "none":
        killed = MetricWriter(folder, restored_step=6)
        killed.write(8, "train", {"loss": 9.0})
        killed.close()
        if before == "events cut short":
            (path,) = folder.glob("events.out.tfevents.*")
            path.write_bytes(path.read_bytes()[:-9])
    for _ in range(2):
        writer = MetricWriter(folder, restored_step=4)
        for step in (6, 8):
            writer.write(step, "train", {"loss": 1 / step})
        writer.close()
    (only,) = folder.glob("events.out.tfevents.*")
    assert tensorboard(only.parent) == {
        "train/loss": [(step, pytest.approx(1 / step)) for step in (2, 4, 6, 8)],
        "validation/recall@10": [(step, pytest.approx(step / 10)) for step in (2, 4)],
    }


def test_without_tensorboard_there_are_no_events(folder):
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]

"""The data benchmark compares equals: every contender's windows are those of a naive loop, from the same events."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import cached_files, data_reading, report
from benchmarks.arrow_timelines import SCHEMA, USERS_PER_BATCH, first_windows, read_windows, write_arrow
from benchmarks.cached_files import TARGET, made
from benchmarks.contenders import data_pipeline
from benchmarks.event_columns import random_timelines
from benchmarks.peers_environment import is_installed, peers_python
from benchmarks.protocol import REPOSITORY, Contender, ContenderFailed, Unavailable, main_python
from benchmarks.raw_files import FORMATS, count_rows
from benchmarks.whole_process import run_whole
from user_llm.builders.built import COLUMNS
from user_llm.builders.families import builder_of
from user_llm.data.windows import Windows

needs_peers = pytest.mark.skipif(not is_installed(), reason="python -m benchmarks installs the peers' environment")
HISTORY = 50


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def naive_windows(table):
    """(history items, history ratings, label's item, label's rating) of every window, user after user."""
    for first, end in zip(table.offsets[:-1], table.offsets[1:], strict=True):
        for label in range(first + HISTORY, end - 1):
            before = slice(label - HISTORY, label)
            yield table.item[before], table.rating[before], table.item[label], table.rating[label]


def assert_windows(batch, table, ids):
    windows = list(naive_windows(table))
    expected = [np.array(column, np.int32) for column in zip(*(windows[number] for number in ids), strict=True)]
    for name, values in zip(("history/item", "history/rating", "label/item", "label/rating"), expected, strict=True):
        np.testing.assert_array_equal(batch[name], values, err_msg=name)


class MappedRows:
    """A `datasets.Dataset` for lack of one: rows of an Arrow file as dictionaries of lists."""

    def __init__(self, file):
        self.table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()

    def __getitem__(self, rows):
        taken = self.table.take(pa.array(rows))
        return {name: [np.array(row) for row in taken[name].to_pylist()] for name in ("item", "rating")}


@pytest.mark.parametrize("events", [1, 22, 146, 10_001])
def test_random_timelines(events, tmp_path):
    table = random_timelines(tmp_path / "first", events)
    assert table.offsets[0] == 0
    assert table.offsets[-1] == events == len(table.item) == len(table.rating) == len(table.timestamp)
    assert np.diff(table.offsets).min() >= min(events, 21)
    assert table.num_users == max(1, events // 145) == len(table.user_ids)
    assert table.item.min() >= 1
    assert table.item.max() <= table.catalogue.num_items
    assert table.rating.min() >= 1
    assert table.rating.max() < len(table.rating_names)

    random_timelines(tmp_path / "again", events)
    random_timelines(tmp_path / "other", events, seed=1)
    first, again, other = (files_of(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert first[f"{COLUMNS}/item.npy"] != other[f"{COLUMNS}/item.npy"]


@pytest.mark.parametrize("events", [146, 10_001, 200_000])
def test_arrow_holds_the_columns(events, tmp_path):
    table = random_timelines(tmp_path / "random", events)
    write_arrow(tmp_path / "random" / COLUMNS, tmp_path / "file.arrow")
    with pa.ipc.open_stream(tmp_path / "file.arrow") as stream:
        batches = list(stream)
    assert all(len(batch) == USERS_PER_BATCH for batch in batches[:-1])
    rows = pa.Table.from_batches(batches, SCHEMA)
    np.testing.assert_array_equal([len(row) for row in rows["item"].to_pylist()], np.diff(table.offsets))
    for name in ("item", "rating"):
        np.testing.assert_array_equal(rows[name].combine_chunks().flatten(), getattr(table, name))


@pytest.mark.parametrize("events", [146, 10_001])
def test_contenders_number_the_same_windows(events, tmp_path):
    table = random_timelines(tmp_path / "random", events)
    write_arrow(tmp_path / "random" / COLUMNS, tmp_path / "file.arrow")
    ours = Windows(table, history_length=HISTORY, split="train")
    first = first_windows(np.diff(table.offsets), HISTORY)
    assert len(ours) == first[-1] == sum(1 for _ in naive_windows(table))

    ids = np.random.default_rng(0).permutation(len(ours))
    assert_windows(ours.gather(ids), table, ids)
    assert_windows(read_windows(MappedRows(tmp_path / "file.arrow"), first, ids, HISTORY), table, ids)


@needs_peers
def test_datasets_reads_the_same_windows(tmp_path):
    table = random_timelines(tmp_path / "random", 10_001)
    write_arrow(tmp_path / "random" / COLUMNS, tmp_path / "file.arrow")
    ids = np.random.default_rng(0).permutation(first_windows(np.diff(table.offsets), HISTORY)[-1])
    np.save(tmp_path / "ids.npy", ids)
    script = f"""
import numpy as np
from benchmarks.contenders.arrow_windows import index, open_dataset, read_windows
dataset = open_dataset("file.arrow")
np.savez("batch.npz", **read_windows(dataset, index(dataset, {HISTORY}), np.load("ids.npy"), {HISTORY}))
"""
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}){script}"
    subprocess.run([peers_python(), "-c", code], cwd=tmp_path, check=True)
    assert_windows(np.load(tmp_path / "batch.npz"), table, ids)


def test_reading_measures_our_windows(tmp_path):
    table = random_timelines(tmp_path, 10_001)
    rounds, batches = 2, 3
    setting = {"malloc": "default", "events": 10_001}
    (row,) = data_reading.read_in_turns([data_reading.our_reader(tmp_path, batches)], setting, rounds)
    assert "skipped" not in row
    assert row["windows"] == sum(1 for _ in naive_windows(table))
    assert len(row["rounds"]) == rounds
    assert row["windows_per_second"] > 0
    read = [tmp_path / COLUMNS / f"{name}.npy" for name in ("item", "rating", "offsets")]
    assert row["bytes_per_event"] == pytest.approx(sum(path.stat().st_size for path in read) / 10_001, abs=0.01)
    assert row["private_reading_mb"] > 2  # a batch at least: two int32 [8192, 50]

    options = {"folder": str(tmp_path), "batches": batches, "history_length": HISTORY, "batch_size": 64}
    with Contender(main_python(), "benchmarks.contenders.column_windows", options, "tuned") as contender:
        values = [contender.round()["value"] for _ in range(3)]
    assert values == [10_001, row["windows"], 64 * batches]


def test_a_contender_that_fails_is_skipped(tmp_path):
    setting = {"malloc": "default", "events": 1000}
    reader = dataclasses.replace(data_reading.our_reader(tmp_path), reads=())
    (row,) = data_reading.read_in_turns([reader], setting, 1)
    assert "metadata.json" in row["skipped"]


def test_a_contender_has_its_time(tmp_path):
    options = {"folder": str(tmp_path), "batches": 1, "history_length": HISTORY, "batch_size": 64}
    with pytest.raises(ContenderFailed, match="took more than 0 seconds"):
        Contender(main_python(), "benchmarks.contenders.column_windows", options, "default", seconds=0.01)
    with pytest.raises(ContenderFailed, match="took more than 0 seconds"):
        run_whole([sys.executable, "-c", "import time; time.sleep(60)"], seconds=0.2)


def test_a_whole_process_is_measured():
    measured = run_whole([sys.executable, "-c", "import time; b'x' * 10**8; time.sleep(0.3)"], seconds=60)
    assert 0.1 < measured["peak_gb"] < 0.2
    assert measured["seconds"] > 0.3
    with pytest.raises(ContenderFailed, match="ended with 3: told"):
        run_whole([sys.executable, "-c", "print('told', flush=True); raise SystemExit(3)"], seconds=60)


def test_files_are_made_once_and_whole(tmp_path, monkeypatch):
    target = tmp_path / "cache" / "random"
    leftover = tmp_path / "cache" / "random.part"
    (leftover / COLUMNS).mkdir(parents=True)
    arguments = ("benchmarks.event_columns", TARGET, "--events=146")
    assert made(target, 2000, *arguments) == target
    random_timelines(tmp_path / "same", 146)
    assert files_of(target) == files_of(tmp_path / "same")
    assert not leftover.exists()
    monkeypatch.setattr(cached_files.subprocess, "run", None)  # must not be asked again
    assert made(target, 2000, *arguments) == target
    with pytest.raises(Unavailable, match=r"needs 1000000\.0 GB of disk"):
        made(tmp_path / "large", 10**15, *arguments)


def test_a_module_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ContenderFailed, match="event_columns ended with 2"):
        made(tmp_path / "random", 2000, "benchmarks.event_columns", TARGET, "--events=many")
    assert not (tmp_path / "random").exists()


@pytest.mark.parametrize("dataset", FORMATS)
def test_raw_files_are_those_of_the_dataset(dataset, tmp_path):
    form, raw = FORMATS[dataset], tmp_path / "raw"
    made(raw, 10**6, "benchmarks.raw_files", dataset, TARGET, "--rows=20000")
    rows = count_rows(raw / form.ratings)
    assert rows == pytest.approx(20_000, rel=0.02)
    builder = builder_of(dataset, raw_path=raw, data_dir=tmp_path / "built")
    builder.download_and_prepare()
    assert builder.info.metadata["summary"]["files"][form.ratings]["read"] == rows
    if is_installed():
        command = [peers_python(), "-m", "benchmarks.contenders.rectools_raw", raw / form.ratings]
        done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
        # Interactions of a user with an item are joined there; Amazon's files repeat some.
        assert rows * 0.97 < int(done.stdout) <= rows


def test_tables():
    reading = [
        {"contender": "a", "malloc": "tuned", "events": 10**9, "skipped": "no | room"},
        {
            "contender": "b",
            "malloc": "tuned",
            "events": 2 * 10**6,
            "open_seconds": 0.5,
            "peak_mb": 3.25,
            "private_open_mb": 2.0,
        },
    ]
    building = [
        {"contender": "c", "files": "f", "rows": 1000, "seconds": [1, 3, 2], "rows_per_second": 500, "peak_mb": 7}
    ]
    results = {
        "machine": {"cpu": "cpu", "cores": 1, "caches": {"L2": "2 MiB"}, "bfloat16": {"avx512_bf16": False}},
        "date": "today",
        "data": {"reading": reading, "building": building},
    }
    lines = report.render(json.loads(json.dumps(results))).splitlines()
    assert lines[0] == "cpu, 1 cores, L2 2 MiB; no avx512_bf16; today."
    assert "| 1,000 | tuned | a | skipped: no / room |  |  |  |  |  |  |" in lines
    assert "| 2 | tuned | b | 0.500 | - | 3 | 2.0 | - | - | - |".replace(" - ", " \N{EN DASH} ") in lines
    assert "| f | 1 | c | 2.0 | 0 | 7 |" in lines
    tables = [line.count("|") for line in lines if line.startswith("|")]
    assert len(set(tables)) == 2
    assert "**Targets**" not in lines


def test_the_pipeline_contender_reads_prompts(tmp_path, monkeypatch):
    for name, value in {"NUM_USERS": 20, "NUM_ITEMS": 2000, "NUM_EVENTS": 2_000}.items():
        monkeypatch.setattr(data_pipeline, name, value)
    study = data_pipeline.SimulatedStudy(tmp_path)
    batch = study.source("next_item", "train").gather(np.arange(3))
    assert batch["history/item"].shape == (3, HISTORY)

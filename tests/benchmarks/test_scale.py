"""The model of large runs against sums by hand, and the benchmark that holds it against runs."""

import dataclasses
import json
import math
import sys
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import scale, scale_rates, scale_report, scale_runs, scale_stages
from benchmarks.scale_hosts import (
    BILLION,
    V5E,
    Job,
    checkpoint_bytes,
    evaluated_bytes,
    plan,
    record_bytes,
    stored_bytes,
    table_bytes,
)
from benchmarks.scale_model import DATABASE_LIMIT, LINES, WITHIN, Held, Line, Size, Term, fit, hold, predict
from benchmarks.whole_process import run_whole
from benchmarks.workload import Workload
from user_llm.builders.families import builder_of

BUILD = Line("build", "core s", (Term("start", lambda size: 1.0), Term("event", lambda size: size.events)))
MORE_RATES = ("beam_event", "shuffle_event", "work_event", "columns_event")


RATES = {name: n if name.endswith("_start") else n * 1e-6 for n, name in enumerate(
    (name for line in LINES for name in line.rates), start=1
)}  # fmt: skip


def made_up(size: Size) -> dict[str, float]:
    """A run that takes what some rates say."""
    return predict(RATES, size)


def test_a_line_is_a_sum():
    size = Size(users=1_000, events_per_user=50.0, items=7)
    assert size.events == 50_000
    assert BUILD.predict({"start": 3.0, "event": 2e-5, "other": 9.0}, size) == pytest.approx(3 + 2e-5 * 50_000)
    assert dataclasses.replace(BUILD, most=3.5).predict({"start": 3.0, "event": 2e-5}, size) == 3.5
    with pytest.raises(KeyError, match="event"):
        BUILD.predict({"start": 3.0}, size)


@pytest.mark.parametrize(("start", "event"), [(3.0, 2e-6), (0.0, 1e-3), (500.0, 0.0)])
def test_rates_are_found_again(start, event):
    sizes = [Size(users, 40.0, 9) for users in (100, 3_000, 70_000)]
    for some in (sizes, sizes[:2]):
        found = BUILD.fit(some, [start + event * size.events for size in some])
        assert found == pytest.approx({"start": start, "event": event}, rel=1e-6, abs=1e-9)


def test_no_rate_is_below_zero_and_one_size_tells_no_two_rates():
    sizes = [Size(users, 40.0, 9) for users in (100, 1_000)]
    found = BUILD.fit(sizes, [2.0, 1.0])  # the larger took less
    assert found["event"] == 0
    assert 1 < found["start"] < 2
    with pytest.raises(ValueError, match="build has 2 terms: 1 sizes"):
        BUILD.fit(sizes[:1], [2.0])


def test_a_prediction_holds_within_a_fifth():
    ratios = {value: Held("", "core s", 1, predicted=10.0, measured=value).within for value in (7.9, 8.1, 11.9, 12.1)}
    assert ratios == {7.9: False, 8.1: True, 11.9: True, 12.1: False}
    assert not Held("", "bytes", 1, predicted=0.0, measured=1.0).within


def test_larger_runs_never_take_less():
    rates = fit([Size(100, 45, 10), Size(900, 45, 10)], [made_up(Size(users, 45, 10)) for users in (100, 900)])
    users = [1, 10, 10**3, 10**6, 10**9]
    for line in LINES:
        values = [line.predict(rates, Size(number, 45, 10)) for number in users]
        assert values == sorted(values)
        assert values[0] > 0
        assert values[-1] <= line.most
    names = [rate for line in LINES for rate in line.rates]
    assert len(set(names)) == len(names) == len(rates)  # each line has its own
    assert (
        predict({**rates, "build_memory_event": 1.0}, Size(10**9, 45, 10))["build's memory at its peak"]
        == DATABASE_LIMIT
    )


def test_bytes_by_hand():
    job = dataclasses.replace(BILLION, size=Size(2, 3, items=9), kept=4)
    floats = 10 * 128  # of the table, the padding's row included
    assert table_bytes(job, "adam") == 4 * (floats + floats + 2 * floats)  # itself, gradients, two moments
    assert table_bytes(job, "rowwise") == 4 * (floats + floats + 10)
    assert checkpoint_bytes(job, "adam") == 4 * 3 * floats
    assert evaluated_bytes(job) == 4 * 50 + 4 * 10 + 8  # int32 history and items, a float64 rank
    # Two fingerprints; items and ratings of 50 events; mask and vectors of 4 of them.
    assert record_bytes(job, "bfloat16") == 2 * 16 + 50 * (4 + 1) + 4 + 4 * 128 * 2
    assert stored_bytes(job, "bfloat16") == 4096
    assert stored_bytes(dataclasses.replace(job, kept=50), "float32") == 7 * 4096
    assert record_bytes(job, "float32") == record_bytes(job, "bfloat16") + 4 * 128 * 2


def test_a_plan_by_hand():
    rates = {name: 1e-6 for line in LINES for name in line.rates} | dict.fromkeys(MORE_RATES, 1e-6)
    workload = Workload(batch_size=1, history_length=2, num_items=1_000, num_layers=1, width=4, num_heads=1, hidden=8)
    job = Job(Size(10**6, 100, items=1_000), workload, negatives=10, parameters=1e6, tokens=5, examples=1e4)
    steps = {step.name: step for step in plan(rates, job, V5E)}
    assert steps["build, DuckDB"].hours == pytest.approx(1e-6 * 1e8 / 3600)
    assert steps["build, DuckDB"].bytes == pytest.approx((1e-6 + 40) * 1e8)
    assert steps["build, Beam: columns by one process"].bytes == 13 * 1e8 + 26 * 1e6
    # A position: four products of 4 × 4 and two of 4 × 8, scores and mixing over 2 keys, 1,000 logits of 4.
    position = 2 * (4 * 16 + 2 * 32) + 2 * 2 * 2 * 4 + 2 * 4 * 1_000
    full = steps["encoder, one epoch, full softmax"]
    assert full.hours == pytest.approx(3 * 1e8 * position / (256 * 197e12 * 0.3) / 3600)
    assert full.hosts == 64
    sampled = steps["encoder, one epoch, sampled softmax"]
    assert sampled.hours == pytest.approx(full.hours * (position - 2 * 4 * 990) / position)
    assert steps["User-LLM, 10⁸ examples"].hours == pytest.approx(6 * 1e6 * 5 * 1e4 / (256 * 197e12 * 0.3) / 3600)
    reading = 1e-6 * 10**6 * (1 + math.log2(1 + 1e8 / 2**18)) / 100 * (100 / 2)  # windows of 2 events, no overlap
    assert steps["windows for it, if cores set the pace"].hours == pytest.approx(reading / (64 * 112) / 3600)
    halved = plan(rates, job, dataclasses.replace(V5E, chips=V5E.chips // 2))
    assert [step.hours for step in halved][5] == pytest.approx(2 * full.hours)


def catalogue_step(items: int) -> dict[str, Any]:
    return {"items": items, "softmax": "sampled", "tables": "rowwise", "seconds": [items / 1e6], "bytes": 2e9}


@pytest.fixture
def runs(monkeypatch) -> list[int]:
    """Runs that are made up, in the order in which they come; nothing is started."""
    found: list[int] = []

    def measure(size: Size, folder) -> dict[str, float]:
        found.append(size.users)
        return made_up(size)

    monkeypatch.setattr(scale, "make_run", lambda size, folder: None)
    monkeypatch.setattr(scale, "measure_run", measure)
    monkeypatch.setattr(scale, "measure_rates", lambda size, folder: dict.fromkeys(MORE_RATES, 1e-6))
    monkeypatch.setattr(scale, "measure_catalogues", lambda sizes, rounds: [catalogue_step(size) for size in sizes])
    return found


def test_the_command_writes_predictions_of_other_sizes(runs, monkeypatch, tmp_path, capsys):
    output = tmp_path / "scale.json"
    flags = ["--scale_fit=100,400", "--scale_sizes=200,1000,2000", "--scale_catalogues=5000,70000"]
    files = [f"--output={output}", f"--data_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only=scale", *flags, *files])
    command.main()
    found = json.loads(output.read_text())["scale"]
    assert runs == [100, 400, 200, 1000, 2000]
    assert len(found["held"]) == 3 * len(LINES)
    assert all(one["within"] and one["ratio"] == pytest.approx(1) for one in found["held"])
    assert {name for names in found["names"].values() for name in names} <= set(found["rates"])
    printed = capsys.readouterr().out
    assert found["rates"] == pytest.approx(RATES, rel=1e-4)
    assert {name: found["rates_of_all"][name] for name in RATES} == pytest.approx(RATES, rel=1e-4)
    assert "45 of 45 within 20 %" in printed
    # 1 + 2 millionths of 9,000, 45,000 and 90,000 events.
    assert "| build | core s | 1.02, 1.02, 1.00 | 1.09, 1.09, 1.00 | 1.18, 1.18, 1.00 |" in printed
    assert "| `build_start` 1 + `build_event` 2e-06 |" in printed
    assert "| 70,000 | sampled | rowwise | 70 | 2.00 |" in printed


def test_a_run_that_takes_longer_is_said(runs, monkeypatch, tmp_path):
    slower = {line.name: 1.3 if line.name == "audit" else 1.0 for line in LINES}

    def measure(size, folder):
        late = size.users == 2_000
        return {name: value * (slower[name] if late else 1) for name, value in made_up(size).items()}

    monkeypatch.setattr(scale, "measure_run", measure)
    found = scale.measure_scale([100, 400], [1_000, 2_000], [], tmp_path)
    assert "**1.30**" in "".join(scale_report.sections(found))
    assert [(one["line"], one["users"]) for one in found["held"] if not one["within"]] == [("audit", 2_000)]
    assert next(one for one in found["held"] if not one["within"])["ratio"] == pytest.approx(1 + 0.3, abs=WITHIN / 10)


@pytest.mark.parametrize(("flags", "message"), [
    (["--scale_fit=100,200", "--scale_sizes=200,300"], "200 is among --scale_fit"),
    (["--scale_fit=100"], "two numbers of users or more"),
])  # fmt: skip
def test_sizes_that_tell_nothing_are_refused(monkeypatch, capsys, flags, message):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only=scale", *flags])
    with pytest.raises(SystemExit):
        command.main()
    assert message in capsys.readouterr().err


def test_workers_and_the_columns_writer_are_measured(tmp_path, monkeypatch):
    raw = scale_runs.raw_files(Size(60, 45, 200), tmp_path / "raw")
    builder = builder_of(scale_runs.DATASET, raw_path=raw, data_dir=tmp_path / "data")
    builder.download_and_prepare()
    wanted = dict(builder.info.metadata["summary"])
    assert wanted["events"] == 60 * 45
    rates = scale_rates.measure_rates(Size(60, 45, 200), tmp_path)
    assert set(rates) == set(MORE_RATES)
    assert min(rates.values()) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "raw"]  # it has tidied up


def test_phases_of_a_run_are_measured(tmp_path, monkeypatch):
    raw = scale_runs.raw_files(Size(300, 45, 200), tmp_path / "raw")
    builder_of(scale_runs.DATASET, raw_path=raw, data_dir=tmp_path / "data").download_and_prepare()
    monkeypatch.setattr(scale_stages, "READ_BATCH", 512)
    options = {"raw": raw, "data_dir": tmp_path / "data", "workdir": tmp_path / "run", "users": 300}
    phases = scale_stages.measure(options)
    assert set(phases) == {"count", "read", "encoder", "evaluate", "audit"}
    assert min(phases.values()) > 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/encoder/metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 300 // scale_stages.BATCH


def test_a_folder_is_watched(tmp_path):
    with scale_runs.peak_bytes(tmp_path) as seen:
        (tmp_path / "spill").write_bytes(b"x" * 10**6)
        while max(seen) < 10**6:  # the disk may take a moment
            pass
        (tmp_path / "spill").unlink()
    assert max(seen) >= 10**6
    assert scale_runs.bytes_of(tmp_path) == 0


def test_a_process_that_sleeps_takes_no_core():
    sleeping = run_whole([sys.executable, "-c", "import time; time.sleep(0.5)"], seconds=60)
    busy = run_whole([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], seconds=60)
    assert sleeping["core_seconds"] < sleeping["seconds"]
    assert busy["core_seconds"] >= 0.5


def test_hold_puts_side_by_side():
    size = Size(10, 2.0, 3)
    values = made_up(size)
    found = hold({name: 2 * value for name, value in values.items()}, values, size)
    assert [one.ratio for one in found] == [0.5] * len(LINES)
    assert {one.users for one in found} == {10}

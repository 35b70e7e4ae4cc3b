"""Part quality on users made up: ours trains, is left alone once finished, and the rows are those of the ranks."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import quality, quality_report
from benchmarks.peers_environment import is_installed
from benchmarks.quality import CURVE, OURS, RANKS, Dataset, measure_quality
from user_llm.evaluation.metrics import ndcg_at_k, recall_at_k

TINY = Dataset("tests/end_to_end/tiny.py", (0.0, 2.0), epochs=2, patience=2, batch_size=16)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder and its rows, without RecTools where it is not there."""
    folder = tmp_path_factory.mktemp("quality")
    overrides = {"data.data_dir": str(folder / "data"), "training.encoder.steps": 12, "data.min_history": 1}
    with pytest.MonkeyPatch.context() as patch:
        if not is_installed():
            patch.setattr(quality, "peers_python", lambda: (_ for _ in ()).throw(quality.Unavailable("not here")))
        rows = measure_quality(folder, overrides, (2, 1), {"Tiny data": TINY}, 1.0)["Tiny data"]
        times = {path: path.stat().st_mtime_ns for path in folder.rglob(RANKS)}
        again = measure_quality(folder, overrides, (2, 1), {"Tiny data": TINY}, 1.0)["Tiny data"]
    assert rows == again
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob(RANKS)}  # nothing was trained anew
    return folder / "tiny-data", rows


def test_rows_are_the_means_of_the_ranks_over_users_and_seeds(measured):
    folder, rows = measured
    assert rows[0]["contender"] == OURS
    ranks = [np.load(folder / "ours" / str(seed) / RANKS) for seed in range(2)]
    assert rows[0]["users"] == 48
    for protocol in ("unseen", "all"):
        values = [recall_at_k(one[protocol], 10).mean() for one in ranks]
        found = rows[0]["metrics"][f"{protocol}/recall@10"]
        assert found["seeds"] == pytest.approx(values)
        assert found["value"] == pytest.approx(np.mean(values))
        values = [ndcg_at_k(one[protocol], 10).mean() for one in ranks]
        assert rows[0]["metrics"][f"{protocol}/ndcg@10"]["value"] == pytest.approx(np.mean(values))
    assert all((one["unseen"] <= one["all"]).all() for one in ranks)
    assert rows[0]["ahead"]["unseen/recall@10"] == {"value": 0, "low": 0, "high": 0}
    curve = [json.loads(line) for line in (folder / "ours" / "0" / CURVE).read_text().splitlines()]
    assert rows[0]["seconds"] == {
        "0.0": [pytest.approx(curve[0]["seconds"]), rows[0]["curves"][1][0][0]],
        "2.0": [None] * 2,
    }


@pytest.mark.skipif(not is_installed(), reason="python -m benchmarks installs the peers' environment")
def test_rectools_reads_the_same_split(measured):
    folder, rows = measured
    ours = np.load(folder / "ours" / "0" / RANKS)
    for row, name in zip(rows[2:], ("rectools-sasrec-softmax", "rectools-hstu"), strict=True):
        assert row["users"] == 48
        theirs = np.load(folder / name / "0" / RANKS)
        assert theirs["users"].tolist() == ours["users"].tolist()
        assert (theirs["all"] >= theirs["unseen"]).all()
        assert row["metrics"]["unseen/recall@10"]["value"] > 0.1  # of 60 items


@pytest.mark.skipif(not is_installed(), reason="python -m benchmarks installs the peers' environment")
def test_rectools_goes_on_where_it_was_stopped(measured):
    folder, _ = measured
    run = folder / "rectools-sasrec-softmax" / "0"
    before = (run / CURVE).read_text()
    (run / RANKS).unlink()
    longer = {"Tiny data": dataclasses.replace(TINY, epochs=3)}
    measure_quality(folder.parent, {"data.data_dir": str(folder.parent / "data")}, (2, 1), longer, 1.0)
    assert (run / CURVE).read_text().startswith(before)
    rows = [json.loads(line) for line in (run / CURVE).read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[2]["loss"] < rows[1]["loss"] < rows[0]["loss"]  # and with the weights that it had


def test_the_table_and_the_curves(measured, tmp_path):
    rows = measured[1]
    text = quality_report.render_quality({"Tiny data": rows})
    assert f"| {OURS} | {rows[0]['metrics']['unseen/recall@10']['value']:.4f}" in text
    quality_report.draw_curves({"Tiny data": rows}, tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").read_text().count("<svg") == 1

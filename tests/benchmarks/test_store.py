"""The store's figures of a tiny run, and the tables of stores and tries."""

import pytest

import user_llm
from benchmarks import report, store
from tests.user_models import made_up

MACHINE = {"cpu": "A CPU", "cores": 2, "caches": {}, "bfloat16": {}}


@pytest.mark.parametrize("server", [None, "redis"])
def test_a_run_s_store_is_measured(tmp_path, monkeypatch, server, request):
    (tmp_path / "model").mkdir()
    model = made_up(tmp_path / "model")
    monkeypatch.setattr(user_llm, "load", lambda run: model, raising=False)
    for name, value in (("_PART", 8), ("_READ", 4), ("_APPENDED", 3)):
        monkeypatch.setattr(store, name, value)
    where = None if server is None else request.getfixturevalue("redis_address") + "/1"
    row = store.measure_store(tmp_path, 20, where, tmp_path)
    assert row["users"] == 20
    assert row["where"] == ("LMDB" if server is None else "Redis")
    assert min(row[name] for name in row if name.endswith("_per_second")) > 0
    text = report.render({"date": "today", "machine": MACHINE, "store": [row]})
    assert f"| {row['where']} | 20 | {row['vectors'][0]} of {row['vectors'][1]} |" in text


def test_a_trie_s_row_is_told():
    row = {"titles": 10_000, "nodes": 93_000, "build_seconds": 0.12, "peak_gb": 0.4, "widest": [3174, 542, 111]}
    row |= {"add_seconds": 0.01, "static_step_ms": 1.2, "ours_on_its_step_ms": 1.5, "over_static": 1.25}
    row |= {"step_ms": 84.0, "free_step_ms": 80.0, "over_free": 0.05, "fused_over": 0.125}
    text = report.render({"date": "today", "machine": MACHINE, "trie": [row]})
    assert "| 10,000 | 0.09 | 0.1 | 0.4 | 0.01 | 3,174, 542, 111 | 84.0 | 80.0 | +5% | +12% | \N{EN DASH} |" in text
    assert "| 10,000 | 1.20 | 1.50 | 1.25 |" in text
    assert "MISSED: a step of beams, time ours / STATIC, 10,000 items: 1.25 (target ≤ 1.2)" in text

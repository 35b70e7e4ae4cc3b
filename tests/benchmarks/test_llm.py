"""Part llm drives the code that a run drives, by any overrides; its rows become shares, ratios and a count of lists."""

import json

import numpy as np
import pytest

from benchmarks import llm, llm_files, llm_report, report
from benchmarks.contenders import jax_user_llm
from benchmarks.llm_workload import TASK, config_of, frozen
from benchmarks.markdown import table
from user_llm.host import Host
from user_llm.training.loop import train

TINY = {
    "data.dataset": "movielens/simulated",
    "data.simulated.num_users": 40,
    "data.simulated.num_items": 60,
    "data.simulated.mean_events": 24,
    "data.history_length": 8,
    "encoder.num_layers": 1,
    "encoder.width": 16,
    "encoder.hidden": 24,
    "llm.vocabulary_size": 400,
    "llm.num_layers": 2,
    "llm.width": 32,
    "llm.hidden": 48,
    "integration.every": 2,
    "integration.hidden": 24,
    "training.user_llm.batch_size": 8,
    "training.user_llm.steps": 3,
    "training.user_llm.log_every": 1,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An experiment of a model from scratch in bfloat16, and its overrides."""
    folder = tmp_path_factory.mktemp("llm")
    overrides = {**TINY, "data.data_dir": str(folder / "data"), "compute.dtype": "bfloat16"}
    experiment, model = jax_user_llm.prepared(overrides, "user_llm", folder / "run")
    return experiment, model, overrides


def test_beams_are_titles_that_differ_between_users(made):
    experiment, model, _ = made
    work = jax_user_llm.searching(experiment, model, users=4)
    titles = work.facts["titles"]
    assert [len(set(answers)) for answers in titles] == [jax_user_llm.BEAMS] * 4
    assert set().union(*titles) <= set(experiment.catalogue.titles)
    assert work.round() < 0


def test_steps_are_those_of_a_run(made, tmp_path):
    experiment, model, overrides = made
    work = jax_user_llm.training(experiment, "user_llm", model, overrides)
    losses = [work.round() for _ in range(3)]

    again, model = jax_user_llm.prepared(overrides, "user_llm", tmp_path / "run")
    run = jax_user_llm.STAGES["user_llm"].training_run(again, model)
    train(run, tmp_path / "run" / "user_llm", seed=again.config.seed, host=Host(tensorboard=False))
    rows = map(json.loads, (tmp_path / "run" / "user_llm" / "metrics.jsonl").read_text().splitlines())
    np.testing.assert_allclose(losses, [row["loss"] for row in rows if row["kind"] == "train"], rtol=1e-6)
    batch = run.batches.whole_batch(0)
    assert work.facts["dtype"] == "bfloat16"
    assert (work.facts["examples"], work.facts["tokens"]) == batch["decoder_input_tokens"].shape
    assert work.facts["vocabulary"] == again.vocabulary.rows


def test_batches_are_kept_as_they_are(made, tmp_path):
    experiment, *_ = made
    source = experiment.source(TASK, "train")
    batches = [source.gather(np.arange(3) + step) for step in range(llm_files.NUM_BATCHES)]
    llm_files.save_batches(batches, tmp_path)
    for kept, batch in zip(llm_files.load_batches(tmp_path), batches, strict=True):
        assert kept.keys() == batch.keys()
        for name, rows in batch.items():
            np.testing.assert_array_equal(kept[name], rows, err_msg=name)


def test_entries_change_what_they_are_named_after():
    facts = {"data": {"data.dataset": "movielens/1m"}, "llm": "folder", "language_model": {"num_layers": 18}}
    first, rivals = llm.pretrained_entries(facts)
    entries = {entry.name: entry.options for entry in (first, *rivals)}
    plain = entries[llm_report.PLAIN]["overrides"]
    assert plain == frozen(facts["data"], "folder")
    added = {name: options["overrides"].items() - plain.items() for name, options in entries.items()}
    upper, alone, trims = (
        ("integration.first_layer", 12),
        ("integration.stored_gib", 0),
        ("llm.trim_vocabulary", True),
    )
    low = {("compute.dtype", "bfloat16"), ("compute.frozen_dtype", "bfloat16")}
    assert added == {
        llm_report.PLAIN: set(),
        llm_report.FIRST_LAYER: {upper, alone},
        llm_report.TRIMMED: {upper, alone, trims},
        llm_report.STATES: {upper, trims},
        llm_report.BFLOAT16: {upper, trims, *low},
        llm_report.TORCH: set(),
        llm_report.TORCH_FIRST_LAYER: set(),
        llm_report.TORCH_BF16: low,
    }
    layers = [entries[name]["first_layer"] for name in (llm_report.TORCH, llm_report.TORCH_FIRST_LAYER)]
    assert layers == [0, 12]


def test_lists_that_differ_are_counted():
    rows = [
        {"contender": name, "titles": titles}
        for name, titles in zip(
            llm_report.SEARCHES, ([["a", "b"], ["a", "b"], ["a"]], [["b", "a"], ["a", "c"], ["a"]], [[]]), strict=True
        )
    ]
    assert llm.differing(rows) == {"users": 3, "lists": 2, "sets": 1}
    assert llm.differing([{"contender": llm_report.SEARCHES[0], "titles": [["a"]]}]) is None


def row(name, seconds, ratio, **more):
    sizes = {"examples": 32, "tokens": 30, "vocabulary": 100, "flops": 4e9, "dtype": "float32"}
    memory = {"peak_gb": 1.0, "peak_above_imports_gb": 0.5, "memory_ratio": 1.0, "malloc": "tuned"}
    return {"contender": name, "seconds": seconds, "time_ratio": ratio, **memory, **sizes, **more}


def test_a_report_has_shares_of_the_peak_and_speedups_over_the_same_work():
    pretrained = [
        row(llm_report.PLAIN, [2.0, 2.0, 9.0], 1.0),
        row(llm_report.TORCH, [4.0], 0.5),
        row(llm_report.TORCH_FIRST_LAYER, [3.0], 0.625),
        row(llm_report.STATES, [0.5], 4.0, dtype="bfloat16"),
        {"contender": llm_report.TRIMMED, "malloc": "tuned", "skipped": "a | b"},
    ]
    llm_report.add_speedups(pretrained)
    assert [r.get("times_as_fast_as_transformers") for r in pretrained] == [2.0, None, None, 6.4, None]
    results = {
        "date": "2026-01-01",
        "machine": {
            "cpu": "A CPU",
            "cores": 2,
            "caches": {"L2": "1M"},
            "bfloat16": {"amx_bf16": False},
            "matmul_gflops": {"jax": {"float32": 10.0, "bfloat16": 40.0}, "torch": {"float32": 20.0, "bfloat16": 5.0}},
        },
        "encoder": [
            row(report.REFERENCE, [1.0], 1.0, batch_size=128),
            {"contender": report.RECTOOLS_WIDE, "malloc": "tuned", "batch_size": 128, "skipped": "no RecTools"},
        ],
        "llm": {
            "dataset": "movielens/1m",
            "llm": "a.gguf",
            "layers": 18,
            "first_layer": 12,
            "scratch": [],
            "pretrained": pretrained,
            "beams": [],
            "differing": None,
        },
    }
    report.add_shares(results)
    # 2 of 20 GFLOP/s of PyTorch's; 8 of 40 of JAX'.
    assert [r.get("share_of_peak") for r in pretrained] == [0.1, 0.05, 0.067, 0.2, None]
    text = report.render(results)
    assert "A CPU, 2 cores, L2 1M; no amx_bf16" in text
    assert "| jax | 10 | 40 |" in text
    assert f"| 128 | tuned | {report.REFERENCE} | 1.00 | 1.00 | 0.50 | 1.00 | 1.000 | 4 | 20% |" in text
    assert f"| 128 | tuned | {report.RECTOOLS_WIDE} | skipped: no RecTools |{6 * '  |'}" in text
    assert f"| {llm_report.PLAIN} | 2.00 | 16.0 | 1.00 | 0.50 | 4 | 10% | 30 | 100 | 2.00 |" in text
    assert f"| {llm_report.TRIMMED} | skipped: a / b |{8 * '  |'}" in text


def test_a_table_fills_rows_that_end_early():
    assert table(["contender", "s", "GB"], [["a"], ["b", "1", "2"]]).splitlines() == [
        *("| contender | s | GB |", "| --- | ---: | ---: |", "| a |  |  |", "| b | 1 | 2 |"),
    ]


def test_overrides_that_the_schema_does_not_know_are_refused():
    with pytest.raises(KeyError, match="no_such_key"):
        config_of({"integration.no_such_key": 1})

"""The other tasks from raw files to results, whose figures are worked out again from what the runs leave."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ml_collections.config_flags import config_path
from rouge_score import rouge_scorer

import user_llm
from user_llm.builders.custom import Builder as Custom
from user_llm.builders.custom import CustomConfig
from user_llm.config import ConfigError
from user_llm.data.timelines import load_timelines
from user_llm.errors import UserError
from user_llm.evaluation.leaks import leak
from user_llm.experiment import experiment as experiment_lib
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.prepare import prepare
from user_llm.experiment.validation import validate
from user_llm.experiment.workdir import NoRun
from user_llm.host import Host
from user_llm.inspect import audit as auditor
from user_llm.parallel.mesh import one_device
from user_llm.run import run

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    monkeypatch.setattr(experiment_lib, "make_mesh", lambda sizes: one_device())


def configured(data_dir, **overrides):
    config = tiny.get_config()
    values = {"data.data_dir": str(data_dir), **{key.replace("__", "."): value for key, value in overrides.items()}}
    for stage in config.stages:
        values |= {f"training.{stage}.{key}": 6 for key in ("steps", "eval_every", "checkpoint_every")}
    for key, value in values.items():
        config_path.set_value(key, config, value)
    validate(config)
    return config


def finish(config, workdir):
    """Runs to the end: (all users' rows, predictions, everything in results.json, the timelines)."""
    results = run(config, workdir, Host(tensorboard=False))
    lines = [json.loads(line) for line in (workdir / "predictions.jsonl").open(encoding="utf-8")]
    protocol = next(iter(results["protocols"].values()))
    assert protocol["users"] == len(lines)
    assert results["audit"]["verdict"] in ("clean", "exceptions")
    table = load_timelines(
        config.data.dataset, data_dir=config.data.data_dir, simulated=config.data.simulated.to_dict()
    )
    return protocol["rows"], lines, results, table


def history(table, line, length=24):
    """Items of a test user before the label, oldest first."""
    user = table.user_ids.index(line["user_id"])
    return table.item[table.offsets[user] : table.offsets[user + 1] - 1][-length:]


REVIEWS = dict(
    task="review_generation", data__dataset="amazon_reviews/simulated", prompt__max_inputs=140, prompt__max_targets=30
)


@pytest.mark.parametrize("kind", ["cross_attention", pytest.param("none", marks=pytest.mark.drill)])
def test_reviews_are_written_and_compared_with_the_true_ones(data_dir, tmp_path, kind):
    text_history = 3 if kind == "none" else 0
    config = configured(data_dir, **REVIEWS, integration__kind=kind, data__text_history=text_history)
    rows, lines, results, table = finish(config, tmp_path / "run")
    llms = {"TextPrompt"} if kind == "none" else {"LLM without context", "User-LLM", "User-LLM, shuffled contexts"}
    assert set(rows) == {"Most frequent review of the rating", "User's latest review", *llms}
    assert len(lines) + results["test_users_without_review"] == 48
    scorer = rouge_scorer.RougeScorer(["rougeLsum"])
    for name, row in rows.items():
        own = [scorer.score(line["truth"], line["written"][name]["text"])["rougeLsum"].fmeasure for line in lines]
        assert row["rougeLsum"]["value"] == pytest.approx(np.mean(own))
        assert row["rougeLsum"]["low"] <= row["rougeLsum"]["value"] <= row["rougeLsum"]["high"]
    frequent = {}
    for user in range(table.num_users):
        learnt = range(table.offsets[user] + config.data.min_history, table.offsets[user + 1] - 2)
        for place, text in zip(learnt, table.reviews(np.array(learnt)), strict=True):
            frequent.setdefault(table.rating[place], Counter())[text] += bool(text)
    for line in lines:
        last = table.offsets[table.user_ids.index(line["user_id"]) + 1] - 1
        before, truth = table.reviews(np.array([last - 1, last]))
        assert line["truth"] == truth
        assert line["written"]["User's latest review"]["text"] == before
        counts = frequent[table.rating[last]]
        assert counts[line["written"]["Most frequent review of the rating"]["text"]] == max(counts.values())
        assert table.catalogue.titles[table.item[last]] in line["prompt"]
        assert truth not in line["prompt"]
    assert len(results["samples"]) == 8
    written = {line["prompt"]: line["written"] for line in lines}
    for sample in results["samples"]:
        best = written[sample["prompt"]]["TextPrompt" if kind == "none" else "User-LLM"]
        assert sample["personalised"] == best["text"]
    model = user_llm.load(tmp_path / "run")
    with pytest.raises(UserError, match="answers review_generation: train a run of 'next_item'"):
        model.recommend([{"item": table.catalogue.titles[1], "rating": 5.0}])


def ranks(scores, label):
    """The place of `label` among categories from 1, behind all of the same score."""
    return sum(score >= scores[label] for score in scores[1:])


@pytest.mark.parametrize("learner", ["user_llm", "dual_encoder"])
def test_favorite_categories_are_ranked(data_dir, tmp_path, learner):
    overrides = {}
    if learner == "dual_encoder":
        overrides = dict(
            stages=("encoder",),
            encoder__kind="dual_encoder",
            encoder__dual_encoder__label="favorite_category",
            training__encoder__keep_best="loss",
        )
    config = configured(data_dir, task="favorite_category", **overrides)
    rows, lines, results, table = finish(config, tmp_path / "run")
    trained = {
        "user_llm": {"LLM without context", "User-LLM", "User-LLM, shuffled contexts"},
        "dual_encoder": {"Dual encoder"},
    }[learner]
    assert set(rows) == {"Majority category", "Category of the latest event", *trained}
    assert all(set(row) == {"recall@1", "recall@5", "recall@10"} for row in rows.values())
    assert results["test_users_without_category"] == 0
    names, categories = table.catalogue.category_names, table.catalogue.item_categories

    def favorite(items):
        counts = Counter(category for item in items for category in categories[item] if category)
        most = max(counts.values())
        for item in reversed(items):
            for category in categories[item]:
                if counts[category] == most:
                    return category
        raise AssertionError("no category")

    majority = np.zeros(len(names))
    for user in range(table.num_users):
        events = table.item[table.offsets[user] : table.offsets[user + 1]]
        for label in range(config.data.min_history, len(events) - 2):
            majority[favorite(events[max(0, label - 24) : label])] += 1
    for line in lines:
        items = history(table, line)
        label = favorite(items)
        assert line["label"] == names[label]
        assert line["ranks"]["Majority category"] == ranks(majority, label)
        latest = majority + [1e6 * (category in categories[items[-1]]) for category in range(len(names))]
        assert line["ranks"]["Category of the latest event"] == ranks(latest, label)
    for name, row in rows.items():
        places = np.array([line["ranks"][name] for line in lines])
        assert row["recall@5"]["value"] == pytest.approx(np.mean(places <= 5))
        assert places.max() <= len(names) - 1  # every name has a place
    assert all(len(set(line["top"])) == len(line["top"]) for line in lines)
    assert all(set(line["top"]) <= set(names) for line in lines)
    assert bool(lines[0]["top"]) == (learner == "user_llm")


@pytest.fixture(scope="module")
def bare(data_dir, tmp_path_factory):
    """A dataset of who did what and when, and nothing else."""
    path = tmp_path_factory.mktemp("csv") / "events.csv"
    rows = (f"{user},{(7 * user + 3 * time) % 20},{time}" for user in range(20) for time in range(12))
    path.write_text("\n".join(["who,what,when", *rows]) + "\n")
    columns = {"user": "who", "item": "what", "timestamp": "when"}
    Custom(config=CustomConfig(name="bare", files=(path,), columns=columns), data_dir=data_dir).download_and_prepare()
    return {"data__dataset": "custom/bare", "data__history_length": 5}


def test_a_dataset_of_one_s_own_runs_without_ratings_and_categories(data_dir, bare, tmp_path):
    config = configured(data_dir, **bare, stages=("encoder",), encoder__features=("item",))
    results = run(config, tmp_path / "run", Host(tensorboard=False))
    assert "Encoder alone" in next(iter(results["protocols"].values()))["rows"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, r"custom/bare has no category and no rating .*: set \"--config\.encoder\.features=\('item',\)\""),
        ({"encoder__features": ("item",), "task": "favorite_category"}, "has no categories, so config.task"),
        ({"encoder__features": ("item",), "task": "review_generation"}, "has no reviews, so config.task"),
    ],
)
def test_what_a_dataset_has_not_is_said_before_anything_trains(data_dir, bare, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run(configured(data_dir, **bare, **overrides), tmp_path / "run", Host(tensorboard=False))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("leaking", [False, True])
def test_the_audit_of_a_config_prints_its_findings(data_dir, tmp_path, capsys, monkeypatch, leaking):
    own, planted = auditor.audit, [leak("planted", 1, 2, "a leak")] if leaking else []
    monkeypatch.setattr(auditor, "audit", lambda experiment: own(experiment) + planted)
    verdict = auditor.audit_config(configured(data_dir), None)
    assert (verdict == "leaks") == leaking
    printed = capsys.readouterr().out
    assert "held-out events in training" in printed
    assert ("planted" in printed) == leaking
    with pytest.raises(NoRun, match="name the --workdir of a finished run"):
        auditor.audit_config(configured(data_dir), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()  # a look is no run


def test_the_dual_encoder_learns_favorites_and_not_the_next_event(data_dir, tmp_path):
    config = configured(
        data_dir,
        task="favorite_category",
        encoder__kind="dual_encoder",
        encoder__dual_encoder__label="favorite_category",
        training__encoder__keep_best="loss",
    )
    experiment = Experiment(config, tmp_path)
    prepare(experiment)
    batch = experiment.encoder_source("train").gather(np.arange(20))
    answers = experiment.source("favorite_category", "train").gather(np.arange(20))["label/answer"]
    np.testing.assert_array_equal(batch["label/category"], answers)
    config.encoder.dual_encoder.label = "item"
    assert "label/category" not in Experiment(config, tmp_path).encoder_source("train").gather(np.arange(2))

"""The auditor finds every leak that is planted, one at a time, and none where there is none."""

import dataclasses
import io
import json

import numpy as np
import pytest
from ml_collections.config_flags import config_path
from rich.console import Console

from user_llm import schema
from user_llm.data.prompts import Piece, Prompts
from user_llm.data.sources import UserLLMSource
from user_llm.data.windows import Windows
from user_llm.evaluation import blocks, leaks
from user_llm.evaluation.leaks import as_results
from user_llm.evaluation.scores import ItemScores
from user_llm.experiment import experiment as experiment_lib
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.prepare import prepare
from user_llm.experiment.seal import claim
from user_llm.experiment.vocabulary import vocabulary_events
from user_llm.experiment.workdir import FACTS
from user_llm.files import write_json
from user_llm.inspect import audit as auditor
from user_llm.inspect.audit import audit, print_audit
from user_llm.parallel.mesh import one_device
from user_llm.tasks import TASKS as TASKS_BY_NAME

TASKS = {
    "next_item": {"data.dataset": "movielens/simulated"},
    "favorite_category": {"data.dataset": "movielens/simulated", "data.text_history": 3, "prompt.max_inputs": 100},
    "review_generation": {"data.dataset": "amazon_reviews/simulated", "prompt.max_inputs": 80},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("runs")


@pytest.fixture
def make(folders, monkeypatch):
    """A small experiment of a task, anew for every test; dataset and vocabulary are made once."""
    monkeypatch.setattr(experiment_lib, "make_mesh", lambda sizes: one_device())

    def make(task="next_item", **overrides):
        data_dir, runs = folders
        config = schema.get_config()
        values = {"task": task, "data.data_dir": str(data_dir), "data.history_length": 6, **TASKS[task], **overrides}
        values |= {f"data.simulated.{key}": value for key, value in SIMULATED.items()}
        values |= {"llm.vocabulary_size": 500, "evaluation.batch_size": 64, "training.encoder.batch_size": 16}
        for key, value in values.items():
            config_path.set_value(key, config, value)
        experiment = Experiment(config, runs / task)
        prepare(experiment)
        return experiment

    return make


SIMULATED = {"num_users": 60, "num_items": 80, "mean_events": 25}


def verdicts(experiment):
    """Checks that did not pass → verdict."""
    return {finding.check: finding.verdict for finding in audit(experiment) if finding.verdict != leaks.PASS}


def plant(experiment, **attributes):
    """Gives an experiment another table, windows, … than its own."""
    for name, value in attributes.items():
        experiment.__dict__[name] = value  # in front of cached properties and methods
    return experiment


@pytest.mark.parametrize("task", TASKS)
def test_a_fair_experiment_has_no_leak(make, task):
    found = audit(make(task))
    assert leaks.FAIL not in {finding.verdict for finding in found}
    assert len({finding.check for finding in found}) == len(found)
    assert all(finding.of or finding.check == "vocabulary without held-out reviews" for finding in found)
    assert task != "review_generation" or all(finding.of for finding in found)


def test_windows_apart_from_one_another_are_looked_up_where_they_lie(make):
    apart = {"encoder.stride": 4, "integration.targets": 3, "data.min_history": 1}
    assert leaks.FAIL not in {finding.verdict for finding in audit(make(**apart))}


def test_an_event_out_of_order(make):
    experiment = make()
    table = experiment.table
    timestamp = table.timestamp.copy()
    timestamp[table.offsets[3] + 2] = 10**12
    plant(experiment, table=dataclasses.replace(table, timestamp=timestamp))
    assert verdicts(experiment)["events in time order"] == leaks.FAIL


def test_a_user_in_two_records(make):
    experiment = make()
    user_ids = list(experiment.table.user_ids)
    user_ids[7] = user_ids[2]
    plant(experiment, table=dataclasses.replace(experiment.table, user_ids=user_ids))
    assert verdicts(experiment)["one record a user"] == leaks.FAIL


class LabelInside(Windows):
    """The history is one event too late, for some."""

    def gather(self, ids):
        batch = super().gather(ids)
        for name in ("item", "rating"):
            history = batch[f"history/{name}"]
            history[::5] = np.concatenate([history[::5, 1:], batch[f"label/{name}"][::5, None]], axis=1)
        return batch


class OtherUser(Windows):
    """A short history is filled up with what lies before it, another user's events."""

    def gather(self, ids):
        batch = super().gather(ids)
        batch["history/item"] = np.where(batch["history/item"] == 0, 1, batch["history/item"])
        return batch


class OtherLabel(Windows):
    """The label is one of the history."""

    def gather(self, ids):
        batch = super().gather(ids)
        return {**batch, "label/item": batch["history/item"][:, -1]}


@pytest.mark.parametrize(
    ("kind", "leaking"),
    [
        (LabelInside, "train"),
        (LabelInside, "validation"),
        (LabelInside, "test"),
        (OtherUser, "train"),
        (OtherLabel, "test"),
    ],
)
def test_a_history_that_is_not_the_events_before_the_label(make, kind, leaking):
    experiment = make(**{"data.min_history": 2})
    data = dict(history_length=6, min_history=2, validation=True)
    plant(
        experiment,
        windows=lambda split, **_: (kind if split == leaking else Windows)(experiment.table, split=split, **data),
    )
    assert verdicts(experiment)["histories end before their label"] == leaks.FAIL


@pytest.mark.parametrize(("reader", "leaking"), [("encoder_source", "train"), ("source", "train"), ("source", "test")])
def test_a_stage_that_reads_other_windows(make, reader, leaking):
    experiment = make()
    own = getattr(experiment, reader)

    def source(*asked):  # a task too, where it is of one
        *task, split = asked
        windows = LabelInside(experiment.table, history_length=6, split=split, validation=True)
        if split != leaking:
            return own(*asked)
        return UserLLMSource(windows, experiment.prompts(*task), experiment.answers(*task)) if task else windows

    assert verdicts(plant(experiment, **{reader: source}))["histories end before their label"] == leaks.FAIL


def test_an_encoder_that_trains_on_test_windows(make):
    experiment = make()
    plant(experiment, encoder_source=lambda split: experiment.windows("test"))
    assert verdicts(experiment)["histories end before their label"] == leaks.FAIL


@pytest.mark.parametrize("text_history", [0, 4])
@pytest.mark.parametrize(("planted", "value"), [("prompts", "title"), ("prompts", "rating"), ("source", "title")])
def test_a_label_in_its_own_prompt(make, text_history, planted, value):
    experiment = make(**{"data.text_history": text_history, "prompt.max_inputs": 100})
    pieces = (Piece("It is", value), Piece("The next movie:"))
    wording = TASKS_BY_NAME["next_item"].wording("movie", "genre")._replace(plain=pieces, after=pieces)
    telling = Prompts(experiment.names, wording, max_inputs=160, text_history=text_history)
    if planted == "prompts":  # of the experiment, wherever they are used
        plant(experiment, prompts=lambda task: telling)
    else:
        answers = experiment.answers("next_item")
        plant(experiment, source=lambda task, split: UserLLMSource(experiment.windows(split), telling, answers))
    assert verdicts(experiment)["the label in its prompt"] == leaks.FAIL


def test_a_review_in_its_own_prompt(make):
    experiment = make("review_generation")

    class Telling:
        """Prompts with the right answer in front."""

        def __init__(self, source):
            self.source = source

        def __len__(self):
            return len(self.source)

        def gather(self, ids):
            batch = self.source.gather(ids)
            answers, _ = leaks.answers_of(batch)
            prompts = np.concatenate([answers, batch["prompt_tokens"]], axis=1)
            return {**batch, "prompt_tokens": prompts, "prompt_lengths": batch["prompt_lengths"] + answers.shape[1]}

    own = experiment.source
    plant(experiment, source=lambda task, split: Telling(own(task, split)))
    assert verdicts(experiment)["the label in its prompt"] == leaks.FAIL


def test_an_answer_that_the_history_brings_is_an_exception_and_no_leak(make):
    experiment = make(**{"data.text_history": 4, "prompt.max_inputs": 120})
    table = experiment.table
    item = table.item.copy()
    last = table.offsets[1:] - 1
    item[last] = item[last - 2]  # everybody comes back to what they saw two events ago
    plant(experiment, table=dataclasses.replace(table, item=item))
    findings = {finding.check: finding for finding in audit(experiment)}
    assert findings["the label in its prompt"].verdict == leaks.PASS
    assert findings["the answer's words in its prompt"].verdict == leaks.EXCEPTION
    assert findings["the answer's words in its prompt"].count >= table.num_users
    assert findings["test items in their own history"].verdict == leaks.EXCEPTION
    assert findings["test items in their own history"][2:4] == (table.num_users, table.num_users)


def test_validation_events_in_training(make):
    experiment = make()
    plant(
        experiment,
        windows=lambda split, **_: Windows(
            experiment.table, history_length=6, split=split, validation=split != "train"
        ),
    )
    found = verdicts(experiment)
    assert found["held-out events in training"] == leaks.FAIL
    assert found["every window once"] == leaks.FAIL


def test_a_window_twice(make):
    experiment = make()

    class Twice(Windows):
        def __len__(self):
            return super().__len__() * 2

        def label_positions(self, ids):
            return super().label_positions(ids % super().__len__())

        def gather(self, ids):
            return super().gather(ids % super().__len__())

    kinds = {"train": Twice}
    plant(
        experiment,
        windows=lambda split, **_: kinds.get(split, Windows)(
            experiment.table, history_length=6, split=split, validation=True
        ),
    )
    assert verdicts(experiment)["every window once"] == leaks.FAIL


def test_two_users_with_the_same_timeline(make):
    experiment = make()
    table = experiment.table
    first, second = (np.arange(table.offsets[user], table.offsets[user + 1]) for user in (0, 1))
    item = table.item.copy()
    length = min(len(first), len(second) - 3)
    item[second[:length]] = item[first[-length:]]  # the first one's last windows are old ones of the second
    plant(experiment, table=dataclasses.replace(table, item=item))
    findings = {finding.check: finding for finding in audit(experiment)}
    finding = findings["test windows like a training window"]
    assert (finding.verdict, finding.count, finding.of) == (leaks.EXCEPTION, 1, table.num_users)


def test_popularity_that_counts_test_events(make):
    experiment = make()
    table = experiment.table
    plant(experiment, item_counts=np.bincount(table.item, minlength=table.catalogue.num_items + 1))
    assert verdicts(experiment)["popularity without held-out events"] == leaks.FAIL


def test_a_vocabulary_of_test_reviews(make, monkeypatch):
    experiment = make("review_generation")
    labels = experiment.windows("test").label_positions(np.arange(5))
    monkeypatch.setattr(auditor, "vocabulary_events", lambda of: np.concatenate([vocabulary_events(of), labels]))
    findings = {finding.check: finding for finding in audit(experiment)}
    assert findings["vocabulary without held-out reviews"].count == 5
    assert findings["vocabulary without held-out reviews"].verdict == leaks.FAIL


def test_test_items_that_nobody_has_seen(make):
    experiment = make()
    table = experiment.table
    item = np.where(table.item == table.item[-1], 1, table.item)
    item[-1] = table.item[-1]
    plant(experiment, table=dataclasses.replace(table, item=item))
    findings = {finding.check: finding for finding in audit(experiment)}
    assert findings["test items never in training"].count == 1
    assert findings["test items never in training"].verdict == leaks.EXCEPTION


def test_labels_that_are_last_by_a_tie(make):
    experiment = make()
    table = experiment.table
    timestamp = table.timestamp.copy()
    ends = table.offsets[1:]
    for back in range(8):  # the order of everybody's last eight events is the source's
        timestamp[ends - 1 - back] = timestamp[ends - 1]
    plant(experiment, table=dataclasses.replace(table, timestamp=timestamp))
    width = table.catalogue.num_items + 1
    same = lambda batch: ItemScores.dense(np.zeros((len(batch["history/item"]), width)))  # noqa: E731
    findings = {finding.check: finding for finding in audit(experiment, {"nothing": same})}
    finding = findings["test labels that are last by a tie"]
    assert (finding.verdict, finding.count, finding.of) == (leaks.EXCEPTION, table.num_users, table.num_users)
    assert "nothing 0.000 to 0.000" in finding.detail
    assert "popularity 0." in finding.detail


def test_blocks_change_no_finding(make, monkeypatch):
    found = []
    for block in (blocks.BLOCK, 64):
        monkeypatch.setattr(blocks, "BLOCK", block)
        experiment = make(**{"data.min_history": 2})
        table = experiment.table
        item = table.item % 3 + 1  # many windows are alike
        timestamp = table.timestamp // 10**6  # and many times
        user_ids = [str(user // 2) for user in range(table.num_users)]
        plant(experiment, table=dataclasses.replace(table, item=item, timestamp=timestamp, user_ids=user_ids))
        found.append(audit(experiment))
    assert len(table.item) > 10 * 64
    assert found[0] == found[1]
    counts = {finding.check: finding.count for finding in found[0]}
    assert counts["test windows like a training window"] > 10
    assert counts["test labels that are last by a tie"] > 1
    assert counts["one record a user"] > 1


@pytest.mark.parametrize("stage", ["encoder", "llm"])
@pytest.mark.parametrize("validation", [True, False])
def test_what_another_run_has_trained_on_our_validation_events(make, tmp_path, stage, validation):
    theirs = make(**{"data.validation": validation}).config
    (tmp_path / "other" / stage / "huggingface").mkdir(parents=True)
    experiment = make()
    write_json(tmp_path / "other" / FACTS, {"fingerprint": experiment.table.fingerprint})
    claim(tmp_path / "other", theirs, {})
    other = tmp_path / "other"
    key, value = {"encoder": ("encoder", other), "llm": ("llm", other / "llm/huggingface")}[stage]
    config_path.set_value(f"{key}.checkpoint", experiment.config, str(value))
    found = {finding.check: finding for finding in audit(experiment)}
    finding = found[f"held-out events in the training of the borrowed {stage}"]
    assert finding.verdict == (leaks.PASS if validation else leaks.FAIL)


def test_what_a_run_on_another_dataset_has_trained_is_not_known(make, tmp_path):
    (tmp_path / "encoder").mkdir()
    other = make("review_generation")
    write_json(tmp_path / FACTS, {"fingerprint": other.table.fingerprint})
    claim(tmp_path, other.config, {})
    experiment = make()
    experiment.config.encoder.checkpoint = str(tmp_path)
    found = {finding.check: finding for finding in audit(experiment)}
    finding = found["held-out events in the training of the borrowed encoder"]
    assert finding.verdict == leaks.EXCEPTION
    assert "amazon_reviews/simulated" in finding.detail


def test_results_and_table_say_what_was_found(make):
    findings = audit(make())
    results = as_results(findings)
    assert json.loads(json.dumps(results)) == results
    fair, known = leaks.leak("none", 0, 9, "nothing"), leaks.noteworthy("some", 1, 9, "an exception")
    assert [as_results(of)["verdict"] for of in ([fair], [fair, known], [known, fair])] == [
        "clean",
        *["exceptions"] * 2,
    ]
    assert results["verdict"] == "clean"
    assert {check["verdict"] for check in results["checks"].values()} == {"pass"}
    failed = as_results([*findings, leaks.leak("planted", 3, 9, "a leak")])
    assert failed["verdict"] == "leaks"
    assert failed["checks"]["planted"] == {"verdict": "fail", "count": 3, "of": 9, "detail": "a leak"}
    stream = io.StringIO()
    print_audit(findings, console=Console(file=stream, width=160, force_terminal=True))
    for finding in findings:
        assert finding.check in stream.getvalue()

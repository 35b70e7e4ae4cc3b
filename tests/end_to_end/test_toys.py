"""A task and an encoder kind of one's own: each is registered with one line, and no other file knows of them."""

import importlib.util
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections.config_flags import config_path

import user_llm
from user_llm import command_line
from user_llm.columns import Texts
from user_llm.config import ConfigError
from user_llm.data.answers import NameAnswers
from user_llm.data.prompts import Piece, Wording
from user_llm.encoders import ENCODERS, EncoderKind
from user_llm.errors import UserError
from user_llm.evaluation.evaluator import Subset, rank_by_scores, user_llm_scores
from user_llm.evaluation.metrics import ranking_metrics
from user_llm.evaluation.report import ranking_predictions
from user_llm.experiment import experiment as experiment_lib
from user_llm.experiment.validation import validate
from user_llm.host import Host
from user_llm.models.user_encoder import EventEncoder
from user_llm.parallel.mesh import one_device
from user_llm.run import run
from user_llm.tasks import TASKS, Answer, Evaluation, Task
from user_llm.tasks.rows import USER_LLM, llm_rows, protocols
from user_llm.training.objectives import autoregressive_objective

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


class CategoryAnswers(NameAnswers):
    """The first category of the label."""

    def __init__(self, words, names, item_categories):
        super().__init__(words, names)
        self._first = item_categories[:, 0]

    def labels(self, batch):
        return self._first[batch["label/item"]]


class NextCategory(Task):
    """The category of the next event."""

    name = "next_category"
    headline = "recall@1"
    needs = ("category",)

    def wording(self, noun, category_noun):
        words = (Piece(f"The {category_noun} of the next {noun}:"),)
        return Wording("next_category_v1", plain=words, before="Seen:", separator="|", after=words)

    def answers(self, study):
        catalogue = study.catalogue
        return CategoryAnswers(catalogue.category_names, study.names.categories, catalogue.item_categories)

    def answer_names(self, names):
        return names.categories

    def scores(self, study, model, with_context):
        trie, eos_id = study.answer_trie(self.name), study.vocabulary.eos_id
        return user_llm_scores(model, trie=trie, eos_id=eos_id, with_context=with_context)

    def evaluate(self, study, trained):
        test = Subset.evenly(study.source(self.name, "test"), 0)
        options = dict(batch_size=study.config.evaluation.batch_size, exclude_seen=False, label="label/answer")
        batch, found = test.gather(np.arange(len(test))), {}
        for row in llm_rows(study, test):
            scores = self.scores(study, trained["user_llm"], row.with_context)
            found[row.name] = rank_by_scores(scores, row.source, description=row.name, **options)
        ranks = {row: values for row, (values, _) in found.items()}
        rows = {row: ranking_metrics(values) for row, values in ranks.items()}
        predictions = ranking_predictions(
            user_ids=[study.table.user_ids[user] for user in batch["user"]],
            labels=batch["label/answer"],
            ranks=ranks,
            answers=found[USER_LLM][1],
            names=study.catalogue.category_names,
        )
        return Evaluation(protocols(study, self.name, batch["history/item"], rows, ()), predictions, {})

    def asker(self, study, model, k):
        scores, names = self.scores(study, model, True), study.catalogue.category_names
        return lambda batch: [
            [Answer(names[best], float(row[best])) for best in np.argsort(-row)[:k]]
            for row in np.asarray(scores(batch).all())
        ]


class MeanOfEvents(EventEncoder):
    """The mean of the events so far."""

    def __call__(self, history, mask, *, key=None):
        events = jnp.where(mask[..., None], self.embedding(history), 0)
        count = jnp.maximum(jnp.cumsum(mask, axis=1), 1)[..., None]
        return jnp.where(mask[..., None], jnp.cumsum(events, axis=1) / count, 0)

    def query(self, history, mask):
        return self(history, mask)[:, -1]


class Mean(EncoderKind):
    """`MeanOfEvents`, trained as the autoregressive encoder is."""

    name = "mean"

    def build(self, config, dims, sizes, rngs):
        return MeanOfEvents(dims, **sizes._asdict(), rngs=rngs)

    def objective(self, config, label_counts):
        return autoregressive_objective(config.chunk_rows)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    TASKS.register(NextCategory())
    ENCODERS.register(Mean())
    yield
    TASKS.unregister("next_category")
    ENCODERS.unregister("mean")


def configured(data_dir, **overrides):
    config = tiny.get_config()
    values = {"data.data_dir": str(data_dir), **{key.replace("__", "."): value for key, value in overrides.items()}}
    for stage in config.stages:
        values |= {f"training.{stage}.{key}": 4 for key in ("steps", "eval_every", "checkpoint_every")}
    for key, value in values.items():
        config_path.set_value(key, config, value)
    validate(config)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the toys in a mixture with another task, and its workdir."""
    workdir = tmp_path_factory.mktemp("toys") / "run"
    config = configured(
        tmp_path_factory.mktemp("data"), task="next_item, next_category", task_rates=(1, 3), encoder__kind="mean"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment_lib, "make_mesh", lambda sizes: one_device())
        return run(config, workdir, Host(tensorboard=False)), workdir


def test_every_task_has_its_tables_and_predictions(finished):
    results, workdir = finished
    protocols = results["protocols"]
    assert [name.partition(":")[0] for name in protocols] == ["next_item"] * 2 + ["next_category"] * 2
    for name, protocol in protocols.items():
        assert name.startswith(f"{protocol['task']}: ")
        assert {"User-LLM", "LLM without context", "User-LLM, shuffled contexts"} <= set(protocol["rows"])
    assert "Encoder alone" in next(iter(protocols.values()))["rows"]  # which ranks items, whichever kind it is
    lines = [json.loads(line) for line in (workdir / "predictions.jsonl").open(encoding="utf-8")]
    assert [line["task"] for line in lines] == ["next_item"] * 48 + ["next_category"] * 48
    genres = {line["label"] for line in lines if line["task"] == "next_category"}
    assert genres < set(Texts.open(workdir / "catalogue", "category_name"))
    assert results["audit"]["verdict"] in ("clean", "exceptions")


def test_validation_tells_the_tasks_apart_and_weighs_them_as_the_training_does(finished):
    _, workdir = finished
    rows = map(json.loads, (workdir / "user_llm" / "metrics.jsonl").open())
    (measured,) = (row for row in rows if row["kind"] == "validation")
    parts = measured["loss/next_item"], measured["loss/next_category"]
    assert parts[0] != parts[1]
    assert measured["loss"] == pytest.approx((parts[0] + 3 * parts[1]) / 4)


def test_a_finished_run_answers_each_task_it_was_trained_for(finished):
    _, workdir = finished
    model = user_llm.load(workdir)
    seen = [{"item": title, "rating": 4.0} for title in model.catalogue.titles[1:4]]
    genres = model.answer(seen, "next_category", k=3)
    assert len({answer.text for answer in genres}) == 3
    assert {answer.text for answer in genres} < set(model.catalogue.category_names)
    assert sorted((answer.score for answer in genres), reverse=True) == [answer.score for answer in genres]
    titles = {answer.text for answer in model.recommend(seen, k=2)}
    assert titles < set(model.catalogue.titles) - {event["item"] for event in seen}
    with pytest.raises(ValueError, match="answers next_item and next_category: train a run of 'favorite_category'"):
        model.answer(seen, "favorite_category")
    with pytest.raises(ValueError, match="task 'next_item' asks about none"):
        model.answer(seen, about=seen[0])


def test_a_run_of_an_older_version_is_refused_by_name(finished):
    _, workdir = finished
    path = workdir / "config.json"
    config, whole = json.loads(path.read_text()), path.read_text()
    del config["format"]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"made by an older version of user_llm \(format 1 of a workdir, this is 5\)"):
        user_llm.load(workdir)
    path.write_text(whole)


@pytest.mark.parametrize("rates", [(1,), (1, 0), (1, -2), (1, 1000), ("a", "b")])
def test_rates_that_cannot_be_are_named(tmp_path, rates):
    with pytest.raises(ConfigError, match=r"expected a number above 0 for each of next_item, next_category"):
        configured(tmp_path, task="next_item,next_category", task_rates=rates)


@pytest.mark.parametrize(("task", "says"), [("next_item,next_item", "each task once"), ("next_item,x", "or 'next_cat")])
def test_tasks_that_cannot_be_are_named(tmp_path, task, says):
    with pytest.raises(ConfigError, match=says):
        configured(tmp_path, task=task)


def test_a_config_s_file_may_register_what_it_needs_and_is_read_more_than_once(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from user_llm import schema\n"
        "from user_llm.tasks import TASKS\n"
        "from user_llm.tasks.next_item import NextItem\n"
        "class Mine(NextItem):\n"
        "    name = 'mine'\n"
        "TASKS.register(Mine())\n"
        "def get_config():\n"
        "    config = schema.get_config()\n"
        "    config.task = 'mine'\n"
        "    return config\n"
    )
    try:
        for _ in range(2):
            validate(command_line.load(str(path)))
    finally:
        TASKS.unregister("mine")


def test_a_name_that_is_taken_is_refused():
    class Other(NextCategory):
        name = "next_item"

    with pytest.raises(UserError, match=r"'next_item' is taken by user_llm\.tasks\.next_item\.NextItem: give .*Other"):
        TASKS.register(Other())

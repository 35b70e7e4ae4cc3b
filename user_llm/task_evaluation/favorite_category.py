"""Task `favorite_category`: how every row ranks all category names, exactly (paper 4.3.2)."""

import functools
from collections.abc import Mapping

import numpy as np

from user_llm.config import trains_categories
from user_llm.data.pipeline import evaluation_batches
from user_llm.evaluation.baselines import latest_category_scores, popularity_scores
from user_llm.evaluation.evaluator import Subset, encoder_scores, rank_by_scores, user_llm_scores
from user_llm.evaluation.metrics import ranking_metrics
from user_llm.evaluation.report import ranking_predictions
from user_llm.experiment import Experiment
from user_llm.stages import Model
from user_llm.task_evaluation.common import (
    LLM,
    SHUFFLED,
    TEXT_PROMPT,
    USER_LLM,
    Evaluation,
    dropped_events,
    llm_rows,
    protocols,
)

MAJORITY = "Majority category"
LATEST = "Category of the latest event"
DUAL_ENCODER = "Dual encoder"

COMPARED = (
    (USER_LLM, MAJORITY),
    (USER_LLM, LATEST),
    (USER_LLM, LLM),
    (USER_LLM, SHUFFLED),
    (DUAL_ENCODER, MAJORITY),
    (TEXT_PROMPT, MAJORITY),
    (TEXT_PROMPT, LATEST),
)

_METRICS = ("recall@1", "recall@5", "recall@10")
_COUNTED_WINDOWS = 100_000  # of training, evenly spread, that say which favourites are frequent


def evaluate(experiment: Experiment, trained: Mapping[str, Model]) -> Evaluation:
    """Ranks the favourite category of every test user that has one under every row."""
    config, catalogue = experiment.config.evaluation, experiment.catalogue
    test, without = _with_favorite(experiment)
    options = dict(batch_size=config.batch_size, exclude_history=False, label="label/answer")
    counts = _favorite_counts(experiment)
    found = {
        MAJORITY: rank_by_scores(popularity_scores(counts), test, **options),
        LATEST: rank_by_scores(latest_category_scores(counts, catalogue.item_categories), test, **options),
    }
    if (encoder := trained.get("encoder")) and trains_categories(experiment.config):
        scores = encoder_scores(encoder.graphdef, encoder.buffers, experiment.mesh, of="category")
        found[DUAL_ENCODER] = rank_by_scores(lambda batch: scores(encoder.parameters, batch), test, **options)
    batch, facts = test.gather(np.arange(len(test))), {"test_users_without_category": without}
    if user_llm := trained.get("user_llm"):
        found |= llm_rows(experiment, test, functools.partial(_ranker, experiment, user_llm, options))
        facts |= dropped_events(experiment, batch)
    ranks = {row: values for row, (values, _) in found.items()}
    rows = {row: {name: ranking_metrics(values)[name] for name in _METRICS} for row, values in ranks.items()}
    answers = next((found[row][1] for row in (USER_LLM, TEXT_PROMPT) if row in found), np.zeros((len(test), 0), int))
    return Evaluation(
        protocols(experiment, batch["history/item"], rows, COMPARED),
        ranking_predictions(
            user_ids=[experiment.table.user_ids[user] for user in batch["user"]],
            labels=batch["label/answer"],
            ranks=ranks,
            answers=answers,
            names=catalogue.category_names,
        ),
        facts,
    )


def _with_favorite(experiment: Experiment) -> tuple[Subset, int]:
    """Test users with a favourite category, and how many of them have none."""
    test = Subset.evenly(experiment.source("test"), experiment.config.evaluation.max_users)
    labels = test.gather(np.arange(len(test)))["label/answer"]
    return Subset(test.source, test.ids[labels > 0]), int((labels == 0).sum())


def _favorite_counts(experiment: Experiment) -> np.ndarray:
    """int64 `[C+1]`: how often each category is the favourite of a training window."""
    source = Subset.evenly(experiment.source("train"), _COUNTED_WINDOWS)
    counts = np.zeros(len(experiment.catalogue.category_names), np.int64)
    for batch in evaluation_batches(source, experiment.config.evaluation.batch_size):
        counts += np.bincount(batch["label/answer"][batch["weight"] > 0], minlength=len(counts))
    return counts


def _ranker(experiment: Experiment, model: Model, options: Mapping, with_context: bool):
    """`(source, name) -> (ranks [n], categories [n, J])` by the probability of every category's name."""
    scores = user_llm_scores(
        model.graphdef,
        model.parameters,
        model.buffers,
        experiment.mesh,
        trie=experiment.answer_trie,
        eos_id=experiment.vocabulary.eos_id,
        with_context=with_context,
    )
    return lambda source, name: rank_by_scores(scores, source, description=name, **options)

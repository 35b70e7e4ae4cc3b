"""Evaluation of a finished experiment on the test users, by task (paper 4.1)."""

import functools
from collections.abc import Mapping

from user_llm.config import trains_categories
from user_llm.evaluation.baselines import Scores
from user_llm.evaluation.evaluator import encoder_scores
from user_llm.experiment import Experiment
from user_llm.stages import Model
from user_llm.task_evaluation import favorite_category, next_item, review_generation
from user_llm.task_evaluation.common import Evaluation

HEADLINES = {"next_item": "recall@10", "favorite_category": "recall@1", "review_generation": "rougeLsum"}
"""Task → the metric that its comparisons are told in."""

_BY_TASK = {
    "next_item": next_item.evaluate,
    "favorite_category": favorite_category.evaluate,
    "review_generation": review_generation.evaluate,
}


def rankers(experiment: Experiment, trained: Mapping[str, Model]) -> dict[str, Scores]:
    """Trained models that rank the catalogue for any windows quickly, for the auditor: the encoder, where it does."""
    encoder = trained.get("encoder")
    if encoder is None or trains_categories(experiment.config):
        return {}
    scores = encoder_scores(encoder.graphdef, encoder.buffers, experiment.mesh)
    return {next_item.ENCODER: functools.partial(scores, encoder.parameters)}


def evaluate(experiment: Experiment, trained: Mapping[str, Model]) -> Evaluation:
    """Answers for every test user under every row, and how good they are.

    Args:
      trained: finished stages by name; a row whose stage is missing is left out.
    """
    return _BY_TASK[experiment.config.task](experiment, trained)

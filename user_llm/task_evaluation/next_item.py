"""Task `next_item`: how every row ranks the test labels among the whole catalogue (paper 4.3.1)."""

import functools
from collections.abc import Mapping

import numpy as np

from user_llm.config import trains_categories
from user_llm.evaluation.baselines import category_popularity_scores, popularity_scores
from user_llm.evaluation.evaluator import (
    Subset,
    encoder_scores,
    rank_by_beams,
    rank_by_scores,
    user_llm_beams,
    user_llm_scores,
)
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

POPULARITY = "Popularity"
CATEGORY = "Popularity in the latest category"
ENCODER = "Encoder alone"

COMPARED = (
    (ENCODER, POPULARITY),
    (ENCODER, CATEGORY),
    (USER_LLM, POPULARITY),
    (USER_LLM, CATEGORY),
    (USER_LLM, ENCODER),
    (USER_LLM, LLM),
    (USER_LLM, SHUFFLED),
    (TEXT_PROMPT, POPULARITY),
    (TEXT_PROMPT, CATEGORY),
)


def evaluate(experiment: Experiment, trained: Mapping[str, Model]) -> Evaluation:
    """Ranks the test labels under every row."""
    config = experiment.config.evaluation
    by_scores = dict(batch_size=config.batch_size, exclude_history=config.exclude_history)
    test = Subset.evenly(experiment.windows("test"), config.max_users)
    catalogue, counts = experiment.catalogue, experiment.item_counts
    in_category = category_popularity_scores(counts, catalogue.item_categories)
    ranks = {
        POPULARITY: rank_by_scores(popularity_scores(counts), test, **by_scores)[0],
        CATEGORY: rank_by_scores(in_category, test, **by_scores)[0],
    }
    if (encoder := trained.get("encoder")) and not trains_categories(experiment.config):
        scores = encoder_scores(encoder.graphdef, encoder.buffers, experiment.mesh)
        ranks[ENCODER] = rank_by_scores(lambda batch: scores(encoder.parameters, batch), test, **by_scores)[0]
    batch = test.gather(np.arange(len(test)))
    items, facts = np.zeros((len(test), 0), np.int32), {}
    if user_llm := trained.get("user_llm"):
        prompted = Subset.evenly(experiment.source("test"), config.max_users)
        answered = llm_rows(experiment, prompted, functools.partial(_ranker, experiment, user_llm))
        ranks |= {row: found for row, (found, _) in answered.items()}
        items = (answered.get(USER_LLM) or answered[TEXT_PROMPT])[1]
        facts = dropped_events(experiment, batch)
    rows = {row: ranking_metrics(found) for row, found in ranks.items()}
    return Evaluation(
        protocols(experiment, batch["history/item"], rows, COMPARED),
        ranking_predictions(
            user_ids=[experiment.table.user_ids[user] for user in batch["user"]],
            labels=batch["label/item"],
            ranks=ranks,
            answers=items,
            names=catalogue.titles,
        ),
        facts,
    )


def _ranker(experiment: Experiment, model: Model, with_context: bool):
    """`(source, name) -> (ranks [n], items [n, J])` by beams, or by the probability of every title."""
    config, trie = experiment.config.evaluation, experiment.answer_trie
    parts = (model.graphdef, model.parameters, model.buffers, experiment.mesh)
    options = dict(trie=trie, eos_id=experiment.vocabulary.eos_id, with_context=with_context)
    if config.answers == "exact":
        ranker = functools.partial(rank_by_scores, user_llm_scores(*parts, **options))
        options = dict(exclude_history=config.exclude_history)
    else:
        beams = user_llm_beams(
            *parts,
            **options,
            constrained=config.constrained,
            num_beams=config.num_beams,
            max_steps=len(trie.fan_out),
            exclude_history=config.exclude_history,
        )
        ranker = functools.partial(rank_by_beams, beams)
        options = dict(trie=trie, read=None if config.constrained else experiment.read_titles)
    return lambda source, name: ranker(source, batch_size=config.batch_size, description=name, **options)

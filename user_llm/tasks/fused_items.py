"""Answers that are items, by beams of the LLM alone or mixed with its encoder, and how the mix is fitted."""

from typing import Any

import numpy as np

from user_llm.data.pipeline import Source
from user_llm.errors import UserError
from user_llm.evaluation.evaluator import (
    Beams,
    Subset,
    TitleReader,
    rank_by_beams,
    user_llm_beams,
    user_llm_scores,
)
from user_llm.evaluation.fusion import Fusion, LogPrior, best_weight, log_prior, share_of
from user_llm.evaluation.metrics import DEEPEST_CUT, METRICS
from user_llm.evaluation.scores import Scores
from user_llm.evaluation.users import encoder_scores
from user_llm.models.model import Model
from user_llm.tasks.base import Study
from user_llm.tasks.rows import FUSED, RERANKED, columns_of

RERANKED_ITEMS = 100  # of the encoder's that the LLM is left with, in a row

Ranks = tuple[np.ndarray, np.ndarray]
"""Ranks float `[n]` of the labels, and items int `[n, K]`."""


def item_beams(study: Study, task: str, model: Model, *, num_beams: int, **options: Any) -> Beams:
    """Beams over the titles of a task, with the options of `user_llm_beams`; what was seen is no answer."""
    trie = study.answer_trie(task)
    return user_llm_beams(
        model,
        trie=trie,
        eos_id=study.vocabulary.eos_id,
        num_beams=num_beams,
        max_steps=len(trie.fan_out),
        states=study.text_states(task, model),
        within_catalogue=study.config.integration.within_catalogue,
        **{"exclude_seen": True, **options},
    )


def title_scores(study: Study, task: str, model: Model, **options: Any) -> Scores:
    """Of every title of a task, with the options of `user_llm_scores`."""
    return user_llm_scores(
        model,
        trie=study.answer_trie(task),
        eos_id=study.vocabulary.eos_id,
        states=study.text_states(task, model),
        within_catalogue=study.config.integration.within_catalogue,
        **options,
    )


def rank_items(
    study: Study, task: str, model: Model, source: Source, row: str, read: TitleReader | None = None, **options: Any
) -> Ranks:
    """Ranks labels by `item_beams`, as the config says.

    With `read` they are free, and may spell a title more than once.
    """
    config = study.config.evaluation
    options |= {"constrained": read is None, "num_best": DEEPEST_CUT if read is None else None}
    beams = item_beams(
        study, task, model, num_beams=config.num_beams, exclude_seen=config.exclude != "nothing", **options
    )
    shown = dict(batch_size=config.batch_size, mesh=study.mesh, description=row)
    return rank_by_beams(beams, source, trie=study.answer_trie(task), read=read, **shown)


def prior_of(encoder: Model, fusion: Fusion, **options: int) -> LogPrior:
    """What an encoder says of items, as it was fitted, with the options of `log_prior`."""
    return log_prior(encoder_scores(encoder), fusion.untrained, fusion.floor, **options)


def mix_of(encoder: Model, fusion: Fusion, **options: int) -> dict[str, Any]:
    """The options of `item_beams` that mix in an encoder, with the options of `log_prior`."""
    return {"prior": prior_of(encoder, fusion, **options), "weight": fusion.weight}


def fused_rows(study: Study, task: str, model: Model, encoder: Model, test: Source) -> dict[str, Ranks]:
    """With the encoder as a second opinion, and of its likeliest items by the LLM alone."""
    fusion = study.fusion(task, lambda: fit(study, task, model, encoder))
    rows = {
        FUSED: mix_of(encoder, fusion),
        RERANKED: {"prior": prior_of(encoder, fusion, within=RERANKED_ITEMS)},
    }
    return {row: rank_items(study, task, model, test, row, **options) for row, options in rows.items()}


def fit(study: Study, task: str, model: Model, encoder: Model) -> Fusion:
    """By the validation labels."""
    asked = Subset.evenly(study.source(task, "validation"), study.config.evaluation.max_fit)
    # An encoder that reads names has something to say of items without events.
    unknown = [] if study.config.encoder.item_text else (np.flatnonzero(study.item_counts[1:] == 0) + 1).tolist()
    floor = share_of(unknown, columns_of(study, asked, "label/item")["label/item"])
    prior = prior_of(encoder, Fusion(1.0, floor, unknown, {}))

    def measure(weight: float) -> float:
        ranks, _ = rank_items(study, task, model, asked, f"fused, w = {weight:g}", prior=prior, weight=weight)
        return float(METRICS["ndcg@10"](ranks).mean())

    weight, tried = best_weight(measure)
    return Fusion(weight, floor, unknown, tried)


def not_fitted() -> Fusion:
    """For `Study.fusion`, where a mix is to be there."""
    raise UserError("the run has fitted no mix: train one with --config.evaluation.answers=fused.")

"""Tables of items that no model has learnt of (`evaluation.cold_share`): an LLM can answer them by their titles."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from user_llm.evaluation.evaluator import rank_by_scores
from user_llm.evaluation.fusion import LogPrior
from user_llm.evaluation.metrics import ranking_metrics
from user_llm.evaluation.scores import ItemScores, Scores
from user_llm.models.model import Model
from user_llm.tasks.base import Study
from user_llm.tasks.fused_items import Ranks, fit, mix_of, rank_items
from user_llm.tasks.rows import ENCODER, FUSED, LLM, TEXT_PROMPT, USER_LLM, encoder_row, table_of

AMONG_ALL, AMONG_COLD = "events of cold items, among all items", "events of cold items, among cold items"
COMPARED = ((USER_LLM, ENCODER), (USER_LLM, LLM), (FUSED, ENCODER), (FUSED, USER_LLM))


def cold_protocols(study: Study, task: str, trained: Mapping[str, Model], users: int) -> dict[str, Any]:
    """The tables of events of cold items, as many as there are test users, evenly spread; {} where no item is cold."""
    cold = study.cold_items
    if cold is None:
        return {}
    source, config = study.cold_source(task, users), study.config.evaluation
    if not len(source):
        return {}
    shown = dict(batch_size=config.batch_size, mesh=study.mesh, exclude_seen=config.exclude != "nothing")
    tables = {}
    for name, left in ((AMONG_ALL, None), (AMONG_COLD, cold)):
        found: dict[str, Ranks] = {}
        if scores := encoder_row(study, trained, of="item"):
            found[ENCODER] = rank_by_scores(_among(scores, left), source, description=f"{ENCODER}, cold", **shown)
        for row, model, options in _llm_rows(study, task, trained, left):
            found[row] = rank_items(study, task, model, source, f"{row}, cold", **options)
        rows = {row: ranking_metrics(ranks) for row, (ranks, _) in found.items()}
        tables[name] = table_of(study, rows, np.ones(len(source), bool), COMPARED)
    return tables


def _llm_rows(study: Study, task: str, trained: Mapping[str, Model], left: np.ndarray | None):
    """Rows of the LLM with their models and the options of `rank_items`."""
    model = trained.get("user_llm")
    if model is None:
        return
    alone: dict[str, Any] = {} if left is None else {"prior": _evenly(left)}
    if study.config.integration.kind == "none":
        yield TEXT_PROMPT, model, {**alone, "with_context": False}
        return
    yield LLM, model, {**alone, "with_context": False}
    yield USER_LLM, model, alone
    if study.config.evaluation.answers == "fused":
        encoder = trained["encoder"]
        options = mix_of(encoder, study.fusion(task, lambda: fit(study, task, model, encoder)))
        yield FUSED, model, {**options, "prior": _only(options["prior"], left)}


def _among(scores: Scores, left: np.ndarray | None) -> Scores:
    """Scores of these items alone."""
    if left is None:
        return scores

    def among(batch: Mapping[str, np.ndarray]) -> ItemScores:
        every = scores(batch)

        def block(first: int, count: int) -> jax.Array:
            values = jnp.asarray(every.block(first, count))
            items = np.minimum(first + np.arange(values.shape[1]), len(left) - 1)  # a block may go on behind the last
            return jnp.where(left[items], values, -jnp.inf)

        return ItemScores(every.width, block)

    return among


def _only(prior: LogPrior, left: np.ndarray | None) -> LogPrior:
    """A prior that closes all other items."""
    return prior if left is None else lambda batch, excluded: jnp.where(left, prior(batch, excluded), -jnp.inf)


def _evenly(left: np.ndarray) -> LogPrior:
    """A prior that knows nothing but which items there are."""

    def prior(batch: Mapping[str, np.ndarray], excluded) -> Any:
        rows = jnp.arange(len(excluded))[:, None]
        even = jnp.broadcast_to(jnp.where(left, 0.0, -jnp.inf), (len(excluded), len(left)))
        return even.at[rows, excluded].set(-jnp.inf)

    return prior

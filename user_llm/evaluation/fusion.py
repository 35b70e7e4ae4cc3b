"""Answers of the contextualised LLM and its encoder together: what the one says of titles, the other of items.

An item's score is `w log p_LLM(title) + (1 - w) log p_encoder(title)`. Two models' mean is nearly always ahead of
each: a mean of two encoders stands beside it in the table.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.prior import of_items_left, open_log_prior, title_masses
from user_llm.evaluation.scores import ItemScores, Scores

LogPrior = Callable[[Mapping[str, np.ndarray], jax.Array], jax.Array]
"""A batch and the items `[B, E]` that are no answer → log-probabilities float32 `[B, I+1]`, -inf where closed."""

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)  # of the LLM

_logger = logging.getLogger(__name__)


class Fusion(NamedTuple):
    """What the validation labels say of a mix.

    Attributes:
      weight: w, of the LLM.
      floor: how often a user is asked for an item that the encoder has never trained on.
      untrained: these items.
      tried: NDCG@10 on the validation labels by each of `WEIGHTS`.
    """

    weight: float
    floor: float
    untrained: Sequence[int]
    tried: Mapping[str, float]


def log_prior(scores: Scores, untrained: Sequence[int], floor: float, *, within: int = 0, items: int = 0) -> LogPrior:
    """What a recommender makes of its scores. All such share their programs where `within` and shapes are the same.

    Args:
      scores: its logits.
      untrained: items that share `floor` equally, of which it has learnt nothing, and maybe not even has scores.
      within: closes all but the likeliest so many items of each user; 0: none.
      items: I + 1 where there are more than it has scores for, or room for more.
    """
    ids = np.asarray(untrained, np.int32)
    unknown = np.zeros(max(items, int(ids.max(initial=0)) + 1), bool)
    unknown[ids] = True
    return lambda batch, excluded: _log_prior(
        jnp.asarray(scores(batch).all()), excluded, unknown, jnp.float32(floor), within=within
    )


@functools.partial(jax.jit, static_argnames=("within",))
def _log_prior(logits: jax.Array, excluded: jax.Array, untrained: jax.Array, floor: jax.Array, *, within: int):
    width = max(logits.shape[1], len(untrained))
    logits = jnp.pad(logits, ((0, 0), (0, width - logits.shape[1])), constant_values=-jnp.inf)
    found = open_log_prior(logits, excluded, jnp.pad(untrained, (0, width - len(untrained))), floor)
    if not within:
        return found
    likeliest, _ = jax.lax.top_k(found, min(within, found.shape[1]))
    last = likeliest.min(axis=1, keepdims=True)  # a slice would make XLA sort the catalogue: 70 times as long
    return jnp.where(found >= last, found, -jnp.inf)


def mean_of(first: Scores, second: Scores) -> Scores:
    """The mean of two recommenders' log-probabilities over the whole catalogue, but for a constant of each user.

    That is the mean of their logits: no block has to know what all the others sum to.
    """

    def mean(batch: Mapping[str, np.ndarray]) -> ItemScores:
        both = first(batch), second(batch)

        def block(first: int, count: int) -> jax.Array:
            ours, theirs = (jnp.asarray(one.block(first, count)) for one in both)
            return (ours + theirs) / 2

        return ItemScores(both[0].width, block)

    return mean


def fused_scores(llm: Scores, prior: LogPrior, weight: float, trie: CatalogueTrie) -> Callable[..., jax.Array]:
    """The exact mix of every item: `(batch, excluded) -> float32 [B, I+1]`; items of equal titles have it together."""

    @jax.jit
    def mix(titles: jax.Array, log_probs: jax.Array) -> jax.Array:
        log_probs = of_items_left(trie, log_probs)
        masses, is_open = title_masses(trie, log_probs)[trie.title_of_item].T, log_probs > -jnp.inf
        return jnp.where(is_open, weight * titles + (1 - weight) * masses, -jnp.inf)

    return lambda batch, excluded: mix(jnp.asarray(llm(batch).all()), prior(batch, excluded))


def share_of(untrained: Sequence[int] | np.ndarray, labels: np.ndarray) -> float:
    """How often a label is one of the items that were never trained on, by those of the validation."""
    return float((np.isin(labels, np.asarray(untrained, np.int64)).sum() + 0.5) / (len(labels) + 1))


def best_weight(measure: Callable[[float], float]) -> tuple[float, dict[str, float]]:
    """The best of `WEIGHTS` by what is measured with each, the larger of equal ones, and all that was measured."""
    tried: dict[str, float] = {}
    for weight in WEIGHTS:
        tried[f"{weight:g}"] = measure(weight)
        _logger.info("w = %g: NDCG@10 %.4f on the validation labels", weight, tried[f"{weight:g}"])
    return max(WEIGHTS, key=lambda weight: (tried[f"{weight:g}"], weight)), tried

"""Recall and NDCG of one right answer a user, and bootstrap intervals of any metric over the users. NumPy only.

A rank is a float: 1 for the best place, inf where the label was not found. Ties count against the model: a label
stands behind every item of the same score, so that a constant score earns nothing.
"""

import functools
from collections.abc import Mapping

import numpy as np

from user_llm.errors import UserError

Interval = dict[str, float]  # "value", "low", "high"

_FEW_VALUES = 1000
_DRAWS_AT_ONCE = 2_000_000  # bounds the memory of a bootstrap to a few dozen MB


def ranks_from_titles(titles: np.ndarray, scores: np.ndarray, counts: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Ranks of the labels among the titles that a beam search found: those of `ranks.rank_labels`, had it found all.

    Args:
      titles: int `[n, J]`, in any order, each once.
      scores: float `[n, J]`, higher is better.
      counts: int `[n, J]`, the rankable items of each title, the label among them; 0 where there is no answer.
      labels: int `[n]`, the title of each label.

    Returns:
      float64 `[n]`: 1 + the number of other rankable items that score at least as high as the label; inf where its
      title is not among those found; NaN where a score is NaN.
    """
    own = (titles == labels[:, None]) & (counts > 0)
    of_label = np.max(scores, axis=1, where=own, initial=-np.inf)
    ranks = np.sum(counts, axis=1, where=scores >= of_label[:, None])  # the label is one of these
    return np.where(np.isnan(scores).any(axis=1), np.nan, np.where(own.any(axis=1), ranks, np.inf))


def refuse_nan(unordered: np.ndarray) -> None:
    """Raises a UserError where bool `unordered` `[n]` says that a row of scores holds NaN."""
    rows = np.flatnonzero(unordered)
    if len(rows):
        raise UserError(
            f"{len(rows)} of {len(unordered)} rows of scores hold NaN, the first in row {rows[0]}: a NaN has no "
            "rank. Look for a diverged training run, or a division by zero in the scores."
        )


def recall_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """1 where the label is among the best `k`, else 0: float64 `[n]`. With one label this is also the hit rate."""
    return (ranks <= k).astype(np.float64)


def ndcg_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """Discounted gain 1 / log2(1 + rank) of a label among the best `k`, else 0: float64 `[n]`. The ideal is 1."""
    return np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)


METRICS: Mapping[str, functools.partial] = {
    "recall@1": functools.partial(recall_at_k, k=1),
    "recall@5": functools.partial(recall_at_k, k=5),
    "recall@10": functools.partial(recall_at_k, k=10),
    "ndcg@10": functools.partial(ndcg_at_k, k=10),
}
DEEPEST_CUT: int = max(metric.keywords["k"] for metric in METRICS.values())
"""Ranks behind it count for no metric."""


def ranking_metrics(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric of `METRICS` for each of the `ranks` `[n]`: name → float64 `[n]`."""
    return {name: metric(ranks) for name, metric in METRICS.items()}


def bootstrap_interval(values: np.ndarray, samples: int = 1000, seed: int = 0) -> Interval:
    """Mean of `values` `[n]` and its 95 % percentile interval over resampled users.

    Drawing n users with replacement and counting how often each distinct value came up is one multinomial draw
    over the distinct values. Recall and NDCG have a dozen of these, so 138,493 users cost no more than a hundred.
    Where values are many, as of ROUGE, the users themselves are drawn.

    Raises:
      UserError: no values, or NaN among them.
    """
    values = np.asarray(values, np.float64)
    if not len(values) or np.isnan(values).any():
        raise UserError(
            f"cannot bootstrap {len(values)} values with {np.isnan(values).sum()} NaN: need at least one user"
        )
    distinct, counts = np.unique(values, return_counts=True)
    generator = np.random.default_rng(seed)
    few = len(distinct) <= _FEW_VALUES
    at_once = max(1, _DRAWS_AT_ONCE // (len(distinct) if few else len(values)))

    def means(number: int) -> np.ndarray:
        if few:
            return generator.multinomial(len(values), counts / len(values), size=number) @ distinct / len(values)
        return values[generator.integers(len(values), size=(number, len(values)))].mean(axis=1)

    drawn = np.concatenate([means(min(at_once, samples - start)) for start in range(0, samples, at_once)])
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def paired_bootstrap(a: np.ndarray, b: np.ndarray, samples: int = 1000, seed: int = 0) -> Interval:
    """Mean of `a - b` over the same users, both `[n]`, and its interval: above 0 throughout, `a` is better."""
    if len(a) != len(b):
        raise ValueError(f"paired values must be of the same users, got {len(a)} and {len(b)}")
    return bootstrap_interval(np.asarray(a, np.float64) - b, samples, seed)


def summarise(values: Mapping[str, np.ndarray], samples: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """The mean of every metric with its interval, from name → values `[n]`."""
    return {name: bootstrap_interval(column, samples, seed) for name, column in values.items()}


def compare(
    values: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray], samples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """How much better `values` are than `others` of the same users, in every metric: name → values `[n]`."""
    return {name: paired_bootstrap(column, others[name], samples, seed) for name, column in values.items()}

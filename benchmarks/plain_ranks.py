"""Ranks from scores of all items at once, for environments that have no JAX: a test holds them to our own."""

import numpy as np

from user_llm.evaluation.metrics import refuse_nan


def ranks_of(scores: np.ndarray, labels: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """The ranks float64 `[n]` of `user_llm.evaluation.ranks.rank_labels`.

    Args:
      scores: float `[n, I+1]`, higher is better; column 0 is padding.
      labels: int `[n]`, from 1.
      excluded: int `[n, E]`, items that are no answer, 0-padded; a label is one all the same.

    Raises:
      UserError: a score is NaN.
    """
    refuse_nan(np.isnan(scores).any(axis=1))
    rows = np.arange(len(labels))
    ahead = scores >= scores[rows, labels][:, None]
    ahead[rows[:, None], excluded] = False
    ahead[:, 0] = ahead[rows, labels] = False
    return np.asarray(1.0 + ahead.sum(axis=1))

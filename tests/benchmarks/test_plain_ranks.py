"""The rivals' ranks are ours: ties, labels that were seen, padding."""

import numpy as np
import pytest

from benchmarks.plain_ranks import ranks_of
from user_llm.errors import UserError
from user_llm.evaluation.ranks import rank_labels
from user_llm.evaluation.scores import ItemScores


def test_plain_ranks_are_those_of_the_evaluation():
    random = np.random.default_rng(0)
    scores = random.integers(0, 5, (200, 30)).astype(np.float32)  # many are alike
    labels, excluded = random.integers(1, 30, 200), random.integers(0, 30, (200, 6))
    excluded[:50, 2] = labels[:50]
    for closed in (excluded, np.zeros_like(excluded)):
        np.testing.assert_array_equal(
            ranks_of(scores, labels, closed), rank_labels(ItemScores.dense(scores), labels, closed).ranks
        )
    scores[3, 4] = np.nan
    with pytest.raises(UserError, match="1 of 200 rows of scores hold NaN"):
        ranks_of(scores, labels, excluded)

"""Tables of cold items: whom the encoder is left with."""

import numpy as np

from user_llm.evaluation.scores import ItemScores
from user_llm.tasks.cold_items import _among


def test_among_some_items_all_others_have_no_score_in_every_block():
    values = np.random.default_rng(0).normal(size=(3, 11)).astype(np.float32)
    longer = np.concatenate([values, np.full((3, 4), np.inf, np.float32)], axis=1)  # the last block goes on
    left = np.arange(11) % 3 == 1
    scores = ItemScores(11, lambda first, count: longer[:, first : first + count])
    among = _among(lambda batch: scores, left)({})
    expected = np.where(left, values, -np.inf)
    np.testing.assert_array_equal(among.all(), expected)
    for first in (0, 4, 8):
        np.testing.assert_array_equal(
            np.asarray(among.block(first, 4))[:, : 11 - first], expected[:, first : first + 4]
        )
    assert _among(lambda batch: scores, None)({}) is scores

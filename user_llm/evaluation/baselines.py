"""Rows of the results tables that need no model: what is popular, and what is popular where the user was last.

Both are `Scores` over batches of `Windows.gather`, float32 or float64, with column 0 (padding) at -inf.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sparse

from user_llm.evaluation.blocks import Labelled, label_blocks
from user_llm.evaluation.scores import ItemScores, Scores


def item_counts(item: np.ndarray, num_items: int, held_out: Sequence[Labelled]) -> np.ndarray:
    """How often each item occurs among the events that a model may learn from.

    Holds two counts of every item and a block of labels (`blocks.BLOCK`), however many events there are.

    Args:
      item: int `[E]`, the flat column of a `TimelineTable`.
      num_items: I.
      held_out: the test windows, and the validation windows where there are any: their labels are not counted. No event
        is the label of two windows.

    Returns:
      int64 `[I+1]`; 0 for item 0.
    """
    counts = np.zeros(num_items + 1, np.int64)
    np.add.at(counts, item, 1)  # reads a column piece by piece, of any integers, where np.bincount makes it int64 first
    return counts - label_counts(item, num_items, held_out)


def label_counts(item: np.ndarray, num_items: int, windows: Sequence[Labelled]) -> np.ndarray:
    """How often each item is the label of a window: int64 `[I+1]`. Arguments and memory are those of `item_counts`."""
    counts = np.zeros(num_items + 1, np.int64)
    for labels in label_blocks(*windows):
        np.add.at(counts, item[labels], 1)
    return counts


def popularity_scores(counts: np.ndarray) -> Scores:
    """Scores every item by its count, int `[I+1]`, the same for every user."""
    popularity = _unpadded(counts)

    def scores(batch: Mapping[str, np.ndarray]) -> ItemScores:
        users = len(batch["history/item"])

        def block(first: int, count: int) -> np.ndarray:
            values = popularity[first : first + count]
            return np.broadcast_to(values, (users, len(values)))

        return ItemScores(len(popularity), block)

    return scores


def category_popularity_scores(counts: np.ndarray, item_categories: np.ndarray) -> Scores:
    """Puts items that share a category with the user's newest event first; popularity orders both halves.

    Args:
      counts: int `[I+1]`.
      item_categories: int `[I+1, C]`, category ids from 1, 0-padded.
    """
    popularity = _unpadded(counts)
    items, slots = np.nonzero(item_categories)
    pairs = np.ones(len(items), np.float32), (items, item_categories[items, slots])
    belongs = sparse.coo_array(pairs, shape=(len(item_categories), item_categories.max() + 1)).tocsr()
    above_all = counts.max() + 1

    def scores(batch: Mapping[str, np.ndarray]) -> ItemScores:
        latest = belongs[batch["history/item"][:, -1]].toarray().T

        def block(first: int, count: int) -> np.ndarray:
            shared = (belongs[first : first + count] @ latest).T
            return popularity[first : first + count] + above_all * (shared > 0).astype(np.float32)

        return ItemScores(len(popularity), block)

    return scores


def latest_category_scores(counts: np.ndarray, item_categories: np.ndarray) -> Scores:
    """Scores categories `[B, C+1]`: puts those of the newest event first; `counts`, int `[C+1]`, order both halves."""
    majority = _unpadded(counts)
    above_all = counts.max() + 1

    def scores(batch: Mapping[str, np.ndarray]) -> ItemScores:
        of_latest = item_categories[batch["history/item"][:, -1]]
        values = np.tile(majority, (len(of_latest), 1))
        values[np.arange(len(values))[:, None], of_latest] = above_all + majority[of_latest]
        return ItemScores.dense(values)

    return scores


def _unpadded(counts: np.ndarray) -> np.ndarray:
    """Counts as float32 (exact up to 16.7 million) with the padding item out of the race."""
    popularity = counts.astype(np.float32)
    popularity[0] = -np.inf
    return popularity

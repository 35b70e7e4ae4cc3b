"""The favourite category of a history (paper 4.1): what the model is asked for, computed from what it sees."""

import numpy as np

from user_llm.data.windows import Windows

_COUNTS_AT_ONCE = 1 << 24  # cells of the table of counts: 128 MB


def favorite_categories(history: np.ndarray, item_categories: np.ndarray) -> np.ndarray:
    """The category that occurs in most events of each history.

    Every category of an event counts once. Of equally frequent ones the one seen latest wins, and of those within
    one event the one the catalogue lists first.

    Args:
        history: int [B, S], item ids, oldest first, 0-padded.
        item_categories: int [I+1, C], category ids of each item, 0-padded.

    Returns:
        int32 [B], category ids; 0 for a history without any.
    """
    num_categories = int(item_categories.max(initial=0)) + 1
    rows = max(1, _COUNTS_AT_ONCE // num_categories)
    parts = [
        _favorites(history[start : start + rows], item_categories, num_categories)
        for start in range(0, len(history), rows)
    ]
    return np.concatenate([np.zeros(0, np.int32), *parts])


def _favorites(history: np.ndarray, item_categories: np.ndarray, num_categories: int) -> np.ndarray:
    sets = item_categories[history][:, :, ::-1].reshape(len(history), -1)  # the later a slot, the more it wins a tie
    slots = sets.shape[1]
    cells = (np.arange(len(history))[:, None] * num_categories + sets).ravel()
    counts = np.bincount(cells, minlength=len(history) * num_categories)
    latest = np.zeros(len(counts), np.int64)
    np.maximum.at(latest, cells, np.tile(np.arange(1, slots + 1), len(history)))
    scores = (counts * (slots + 1) + latest).reshape(len(history), num_categories)
    scores[:, 0] = 0  # padding
    return scores.argmax(axis=1).astype(np.int32)


class FavoriteCategorySource:
    """Windows with the favourite category of their history: what the dual encoder baseline learns (paper 4.3.2).

    Args:
        windows: which windows.
        item_categories: int [I+1, C], category ids of each item, 0-padded.
    """

    def __init__(self, windows: Windows, item_categories: np.ndarray):
        self._windows = windows
        self._item_categories = item_categories

    def __len__(self) -> int:
        return len(self._windows)

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """What `Windows.gather` gives, and `label/category` int32 [B]: the favourite, 0 where there is none."""
        batch = self._windows.gather(ids)
        return {**batch, "label/category": favorite_categories(batch["history/item"], self._item_categories)}

"""The favourite category of a history (paper 4.1): what the model is asked for, computed from what it sees."""

import numpy as np

from user_llm.data.windows import Windows

_SLOTS_AT_ONCE = 1 << 21  # categories of events looked at together: some 16 MB an array, whatever their number


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
    slots = history.shape[1] * item_categories.shape[1]
    rows = max(1, _SLOTS_AT_ONCE // slots)
    parts = [_favorites(history[start : start + rows], item_categories) for start in range(0, len(history), rows)]
    return np.concatenate([np.zeros(0, np.int32), *parts])


def _favorites(history: np.ndarray, item_categories: np.ndarray) -> np.ndarray:
    sets = item_categories[history][:, :, ::-1].reshape(len(history), -1)  # the later a slot, the more it wins a tie
    slots = sets.shape[1]
    bits = slots.bit_length()
    # Sorted by category, then slot: in a run of one category, a slot's rank is the count and the last one the latest.
    keys = np.sort((sets.astype(np.int64) << bits) | np.arange(slots), axis=1)
    category, place = keys >> bits, np.arange(slots)
    begins = np.diff(category, axis=1, prepend=-1) != 0
    count = place - np.maximum.accumulate(np.where(begins, place, 0), axis=1) + 1
    scores = np.where(category > 0, (count << bits) | (keys & ((1 << bits) - 1)), 0)  # padding has none
    return category[np.arange(len(sets)), scores.argmax(axis=1)].astype(np.int32)


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

    def bounds(self, shards: int) -> np.ndarray:
        """See `Windows.bounds`."""
        return self._windows.bounds(shards)

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """What `Windows.gather` gives, and `label/category` int32 [B]: the favourite, 0 where there is none."""
        batch = self._windows.gather(ids)
        return {**batch, "label/category": favorite_categories(batch["history/item"], self._item_categories)}

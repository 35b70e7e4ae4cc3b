"""Windows by integer: `history_length` events and the next as label, read from flat columns in whole batches."""

import numpy as np

from user_llm.data.splits import label_ranges, resolve_min_history
from user_llm.data.timelines import TimelineTable


class Windows:
    """The windows of one split, numbered 0 ... len-1 in (user, time) order.

    A window is an address, never a copy: its number gives the user (one int32 a window, 55 MB for ML-20M)
    and the user gives the label's position. Histories are read as overlapping fixed-width records of the
    flat columns, so a row costs one memory copy.

    Args:
        table: the timelines.
        history_length: S, events in a history.
        split: `train`, `validation` or `test` (see `splits`).
        min_history: the fewest events behind a label, when histories shorter than S are admitted.
        validation: whether position n-2 of every user is held out of `train`.

    Raises:
        UserError: lengths out of range.
        ValueError: an unknown split.
    """

    def __init__(
        self,
        table: TimelineTable,
        *,
        history_length: int,
        split: str,
        min_history: int | None = None,
        validation: bool = False,
    ):
        self.table = table
        self.history_length = history_length
        self.split = split
        self.min_history = resolve_min_history(history_length, min_history)
        self.validation = validation
        first, end = label_ranges(np.diff(table.offsets), split, self.min_history, validation)
        counts = end - first
        self._user = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._shift = table.offsets[:-1] + first - (np.cumsum(counts) - counts)
        self._item = table.padded("item", history_length)
        self._rating = table.padded("rating", history_length)

    def __len__(self) -> int:
        return len(self._user)

    def users(self, ids: np.ndarray) -> np.ndarray:
        """The user (row of the table) of each window: int32 [B]."""
        ids = np.asarray(ids)
        if ids.size and (ids.min() < 0 or ids.max() >= len(self)):
            raise IndexError(
                f"window numbers run from 0 to {len(self) - 1} in split {self.split!r} of {self.table.name}, "
                f"got {ids.min()} ... {ids.max()}."
            )
        return self._user[ids]

    def label_positions(self, ids: np.ndarray) -> np.ndarray:
        """Where each window's label lies in the flat columns: int64 [B]."""
        return self._shift[self.users(ids)] + ids

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """A batch of windows.

        Args:
            ids: int [B], window numbers.

        Returns:
            history/item, history/rating: int32 [B, S], oldest first; shorter histories are left-padded with
            0, so that the newest event is always at S-1. label/item, label/rating: int32 [B]. user: int32 [B].
        """
        user = self.users(ids)
        label = self._shift[user] + ids
        item = _records(self._item, self.history_length, label)
        rating = _records(self._rating, self.history_length, label)
        if self.min_history < self.history_length:
            events = label - self.table.offsets[user]
            short = np.flatnonzero(events < self.history_length)
            foreign = np.arange(self.history_length) < self.history_length - events[short, None]
            item[short] = np.where(foreign, 0, item[short])
            rating[short] = np.where(foreign, 0, rating[short])
        return {
            "history/item": item,
            "history/rating": rating,
            "label/item": self._item[label + self.history_length],
            "label/rating": self._rating[label + self.history_length],
            "user": user,
        }


def _records(column: np.ndarray, length: int, start: np.ndarray) -> np.ndarray:
    """Rows `column[s : s + length]` for every s in `start`, as a writable array [B, length].

    Indexing overlapping void records copies a row at a time; `sliding_window_view` walks the elements and
    takes 1.7 times as long.
    """
    record = np.dtype((np.void, column.itemsize * length))
    overlapping = np.ndarray((len(column) - length + 1,), record, buffer=column, strides=(column.itemsize,))
    return overlapping[start].view(column.dtype).reshape(-1, length)

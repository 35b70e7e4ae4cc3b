"""Windows by integer: `history_length` events and the next as label, read from flat columns in whole batches."""

import functools

import numpy as np

from user_llm.arguments import whole
from user_llm.data.splits import label_ranges, resolve_min_history
from user_llm.data.timelines import TimelineTable
from user_llm.errors import UserError

MOST_USERS = np.iinfo(np.int32).max
"""Of a table: a batch names its users by int32."""


class Windows:
    """The windows of one split, numbered 0 ... len-1 in (user, time) order.

    A window is an address, never a copy: its number gives the user, by way of the users' first windows (some 30 bytes
    a user, nothing a window), and the user gives the label's position. Histories are read as overlapping fixed-width
    records of the flat columns, which lie in files: a row costs one memory copy.

    Args:
        table: the timelines.
        history_length: S, events in a history.
        split: `train`, `validation` or `test` (see `splits`).
        min_history: the fewest events behind a label, when histories shorter than S are admitted.
        validation: whether position n-2 of every user is held out of `train`.
        stride: events from one label of a user to the next, counted back from the newest. With S a model that learns
            at every slot of a history learns each event once.
        times: whether batches bring when events were.
        seen: whether batches bring `seen/item`, all that the user has met before the label.

    Attributes:
        longest: events before a label, at most: the width of `seen/item`.

    Raises:
        UserError: lengths or stride out of range, or more than `MOST_USERS` users.
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
        stride: int = 1,
        times: bool = False,
        seen: bool = False,
    ):
        if table.num_users > MOST_USERS:
            raise UserError(
                f"{table.name} has {table.num_users:,} users, and windows number {MOST_USERS:,} at most: build several "
                "datasets of some users each."
            )
        self.table = table
        self.history_length = history_length
        self.split = split
        self.min_history = resolve_min_history(history_length, min_history)
        self.validation = validation
        self._stride = whole("stride", stride, 1)
        first, end = label_ranges(np.diff(table.offsets), split, self.min_history, validation)
        counts = -(-(end - first) // stride)
        self._users = np.flatnonzero(counts).astype(np.int32)  # those with windows
        self._starts = np.concatenate([[0], np.cumsum(counts[self._users])])
        newest = table.offsets[self._users] + end[self._users] - 1
        self._shift = newest - stride * (self._starts[1:] - 1)
        self.longest = int((end - 1)[self._users].max(initial=0))
        self._seen = seen
        self._time = _of_length(table.timestamp, history_length) if times else None
        self._item = _of_length(table.item, history_length)
        self._rating = _of_length(table.rating, history_length)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def bounds(self, shards: int) -> np.ndarray:
        """Where each of so many shards begins, and the last ends: int64 [shards + 1]; no user is in two of them.

        They have as many windows each, to the nearest user.

        Raises:
            UserError: there are fewer users with windows than shards.
        """
        even = np.arange(shards + 1) * len(self) // shards
        above = np.searchsorted(self._starts, even)
        below = np.maximum(above - 1, 0)
        nearer = even - self._starts[below] < self._starts[above] - even
        bounds = self._starts[np.where(nearer, below, above)]
        if np.any(np.diff(bounds) <= 0):
            raise UserError(
                f"{len(self._users)} users with windows in split {self.split!r} of {self.table.name} do not make "
                f"{shards} shards: lower data.shards."
            )
        return bounds

    def users(self, ids: np.ndarray) -> np.ndarray:
        """The user (row of the table) of each window: int32 [B]."""
        return self._users[self._rows(ids)]

    def label_positions(self, ids: np.ndarray) -> np.ndarray:
        """Where each window's label lies in the flat columns: int64 [B]."""
        return self._shift[self._rows(ids)] + self._stride * ids

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        """Which of the users with windows each window is of: int32 [B]."""
        if ids.size and (ids.min() < 0 or ids.max() >= len(self)):
            raise IndexError(
                f"window numbers run from 0 to {len(self) - 1} in split {self.split!r} of {self.table.name}, "
                f"got {ids.min()} ... {ids.max()}."
            )
        bits, guide = self._guide
        block = ids >> bits
        low, high = guide[block], guide[block + 1]
        unsure = np.flatnonzero(low < high)
        while len(unsure):  # bisection of what is left between the bounds
            first, last = low[unsure], high[unsure]
            middle = (first + last + 1) >> 1
            reached = self._starts[middle] <= ids[unsure]
            low[unsure], high[unsure] = np.where(reached, middle, first), np.where(reached, last, middle - 1)
            unsure = unsure[low[unsure] < high[unsure]]
        return low

    @functools.cached_property
    def _guide(self) -> tuple[int, np.ndarray]:
        """For every block of 2**bits windows the row its first is of, int32; one and the next bound all in a block.

        A block has about one user: a bisection of all users is 20 times slower, as each of its steps misses the cache.
        """
        bits = max(len(self) // max(len(self._users), 1), 1).bit_length() - 1
        edges = np.arange((len(self) >> bits) + 2, dtype=np.int64) << bits
        rows = np.searchsorted(self._starts, edges, side="right") - 1
        return bits, np.minimum(rows, len(self._users) - 1).astype(np.int32)

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """A batch of windows.

        Args:
            ids: int [B], window numbers.

        Returns:
            history/item, history/rating: int32 [B, S], oldest first; shorter histories are left-padded with
            0, so that the newest event is always at S-1. label/item, label/rating: int32 [B]. user: int32 [B].
            Where they were asked for: history/ago, int32 [B, S], seconds from an event to the label, at most 2**31 - 1,
            and label/ago, int32 [B], 0; seen/item, int32 [B, `longest`], left-padded likewise.
        """
        row = self._rows(ids)
        user, label = self._users[row], self._shift[row] + self._stride * ids
        history = {
            "history/item": _records(self._item, self.history_length, label),
            "history/rating": _records(self._rating, self.history_length, label),
        }
        if self._time is not None:
            now = self.table.timestamp[label]
            ago = now[:, None] - _records(self._time, self.history_length, label)
            history["history/ago"] = np.clip(ago, 0, np.iinfo(np.int32).max).astype(np.int32)
        if self.min_history < self.history_length:
            events = label - self.table.offsets[user]
            short = np.flatnonzero(events < self.history_length)
            foreign = np.arange(self.history_length) < self.history_length - events[short, None]
            for values in history.values():
                values[short] = np.where(foreign, 0, values[short])
        if self._time is not None:
            history["label/ago"] = np.zeros(len(label), np.int32)
        if self._seen:
            places = label[:, None] + np.arange(-self.longest, 0)
            own = places >= self.table.offsets[user][:, None]
            history["seen/item"] = np.where(own, self.table.item[np.maximum(places, 0)], 0)
        return {
            **history,
            "label/item": self.table.item[label].astype(np.int32),
            "label/rating": self.table.rating[label].astype(np.int32),
            "user": user,
        }


def _of_length(column: np.ndarray, length: int) -> np.ndarray:
    """A column that has a record: one shorter than that is filled up behind its end."""
    return column if len(column) >= length else np.pad(column, (0, length - len(column)))


def _records(column: np.ndarray, length: int, end: np.ndarray) -> np.ndarray:
    """Rows `column[e - length : e]` for every e in `end`, [B, length]; what lies before the column is anything.

    Integers of 32 bits or fewer come as int32.

    Indexing overlapping void records copies a row at a time; `sliding_window_view` walks the elements and
    takes 1.7 times as long.
    """
    record = np.dtype((np.void, column.itemsize * length))
    overlapping = np.ndarray((len(column) - length + 1,), record, buffer=column, strides=(column.itemsize,))
    rows = overlapping[np.maximum(end - length, 0)].view(column.dtype).reshape(-1, length)
    early = np.flatnonzero(end < length)
    rows[early] = rows[early[:, None], np.maximum(np.arange(length) - (length - end[early, None]), 0)]
    return rows.astype(np.int32, copy=False) if column.itemsize <= 4 else rows

"""Timelines as people keep them in Arrow: one row a user, with lists of items and ratings.

    python -m benchmarks.arrow_timelines FOLDER FILE

Run and read by the peers' environment too, so it needs NumPy and PyArrow alone.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

SCHEMA = pa.schema({"item": pa.list_(pa.int32()), "rating": pa.list_(pa.uint8())})
USERS_PER_BATCH = 1_000  # as `datasets` writes them


class Rows(Protocol):
    """Lists by column, of the rows that are asked for: what a `datasets.Dataset` gives."""

    def __getitem__(self, rows: np.ndarray) -> dict[str, Sequence[np.ndarray]]: ...


def write_arrow(columns: Path, file: Path) -> None:
    """Writes the columns in a folder, as our builds leave them, to a file in Arrow's IPC stream format."""
    item, rating, offsets = (np.load(columns / f"{name}.npy", mmap_mode="r") for name in ("item", "rating", "offsets"))
    with pa.ipc.new_stream(file, SCHEMA) as writer:
        for first in range(0, len(offsets) - 1, USERS_PER_BATCH):
            bounds = offsets[first : first + USERS_PER_BATCH + 1]
            ends = pa.array((bounds - bounds[0]).astype(np.int32))
            lists = [
                pa.ListArray.from_arrays(ends, pa.array(values[bounds[0] : bounds[-1]])) for values in (item, rating)
            ]
            writer.write_batch(pa.record_batch(lists, schema=SCHEMA))


def first_windows(lengths: np.ndarray, history_length: int) -> np.ndarray:
    """Where each user's training windows begin among all, and the last end: int64 [users + 1].

    A label has `history_length` events before it, and is not its user's last event: that one is the test's.

    Args:
      lengths: int [users], events of each.
      history_length: S.
    """
    return np.concatenate([[0], np.cumsum(np.maximum(lengths.astype(np.int64) - 1 - history_length, 0))])


def read_windows(dataset: Rows, first: np.ndarray, ids: np.ndarray, history_length: int) -> dict[str, np.ndarray]:
    """A batch of windows by their numbers, as one would write it: fetch the users' rows, and cut.

    Args:
      dataset: gives the rows of users, "item" and "rating".
      first: of `first_windows`.
      ids: int [B], window numbers.
      history_length: S.

    Returns:
      What `Windows.gather` does, but the user: int32 [B, S] and [B].
    """
    users = np.searchsorted(first, ids, side="right") - 1
    labels = ids - first[users] + history_length
    rows, batch = dataset[users], {}
    for name in ("item", "rating"):
        pairs = list(zip(rows[name], labels, strict=True))
        batch[f"history/{name}"] = np.stack([row[at - history_length : at] for row, at in pairs]).astype(np.int32)
        batch[f"label/{name}"] = np.array([row[at] for row, at in pairs], np.int32)
    return batch


if __name__ == "__main__":
    write_arrow(Path(sys.argv[1]), Path(sys.argv[2]))

"""Opens what the build of a dataset has written beside its records: flat columns and review texts, memory-mapped."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from user_llm.builders.built import COLUMNS, NUMBERS, REVIEWS, USERS


def open_columns(data_dir: str | Path) -> dict[str, np.ndarray]:
    """The columns of numbers, each `[E]`, with `offsets` int64 `[users + 1]` and `user_ids`; read-only.

    Args:
        data_dir: the folder of the prepared dataset.
    """
    return {name: _open(data_dir, name) for name in (*NUMBERS, *USERS)}


class ReviewTexts:
    """The reviews of all events of the prepared dataset in `data_dir`, which has some."""

    def __init__(self, data_dir: str | Path):
        characters, offsets = (_open(data_dir, name) for name in REVIEWS)
        self._texts = pa.LargeStringArray.from_buffers(
            len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(characters)
        )

    def __call__(self, events: np.ndarray) -> list[str]:
        """The texts of the events at these places of the flat columns, int [B]; "" where there is none."""
        return self._texts.take(pa.array(np.asarray(events, np.int64))).to_pylist()


def _open(data_dir: str | Path, name: str) -> np.ndarray:
    return np.load(Path(data_dir) / COLUMNS / f"{name}.npy", mmap_mode="r")

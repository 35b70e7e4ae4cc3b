"""The events' columns beside a dataset's records: written while these are, block after block."""

import contextlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from user_llm.builders.timelines import Block
from user_llm.columns import ColumnWriter, TextsWriter


class EventColumns:
    """Writes `built.COLUMNS` into a new folder.

    Args:
      folder: the folder.
      ratings: rating classes, padding included; the column has the narrowest type that holds them.
      reviews: whether there are reviews to write.
    """

    def __init__(self, folder: Path, *, ratings: int, reviews: bool):
        folder.mkdir()
        self._files = contextlib.ExitStack()
        types: dict[str, np.dtype] = {
            "item": np.dtype(np.int32),
            "rating": np.min_scalar_type(ratings - 1),
            "timestamp": np.dtype(np.int64),
        }
        self._numbers = {
            name: self._files.enter_context(ColumnWriter(folder, name, dtype)) for name, dtype in types.items()
        }
        self._offsets = self._files.enter_context(ColumnWriter(folder, "offsets", np.int64))
        self._users = self._files.enter_context(TextsWriter(folder, "user_id"))
        self._reviews = self._files.enter_context(TextsWriter(folder, "review")) if reviews else None
        self._offsets.append(np.zeros(1, np.int64))
        self._events = 0

    def append(self, block: Block) -> None:
        """Adds the users of a block."""
        for name, writer in self._numbers.items():
            writer.append(block.columns[name])
        self._offsets.append(self._events + block.ends)
        self._events += int(block.ends[-1])
        _append_texts(self._users, pa.array(block.user_ids, pa.large_string()))
        if self._reviews is not None:
            _append_texts(self._reviews, block.reviews)

    def __enter__(self) -> "EventColumns":
        return self

    def __exit__(self, *_) -> None:
        self._files.close()


def _append_texts(writer: TextsWriter, texts: pa.Array) -> None:
    texts = texts.cast(pa.large_string())
    _, offsets, characters = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    run = np.frombuffer(characters, np.uint8)[ends[0] : ends[-1]] if characters else np.zeros(0, np.uint8)
    writer.append(run, np.diff(ends))

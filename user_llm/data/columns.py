"""Reads a prepared dataset once: flat columns and review texts, cached in the dataset's own folder."""

import logging
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds

from tfds_builders.timelines import SPLIT
from user_llm.files import replacing

NUMBERS = ("item", "rating", "timestamp")

_LOGGER = logging.getLogger(__name__)
_READ_USERS = 1024  # users decoded at once


def cached_columns(dataset: tfds.core.DatasetBuilder, fingerprint: str) -> dict[str, np.ndarray]:
    """The columns of numbers, each `[E]`, with `offsets` int64 `[users + 1]` and `user_ids`.

    Decoding ML-20M takes about half a minute, reading its cache two seconds. The cache is written when it is
    missing, broken or of another `fingerprint`.
    """
    cache = Path(dataset.data_dir) / "columns.npz"
    try:
        with np.load(cache) as stored:
            if stored["fingerprint"].item() == fingerprint:
                return {key: stored[key] for key in (*NUMBERS, "offsets", "user_ids")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # nothing there, or not whole: the dataset itself has it all
    columns = _read_columns(dataset)
    try:
        with replacing(cache) as partial, partial.open("wb") as file:
            np.savez(file, fingerprint=np.array(fingerprint), **columns)
    except OSError as error:  # a shared dataset that may only be read, a full disk
        _LOGGER.warning("timelines are not cached, so the next start decodes them again: %s", error)
    return columns


class ReviewTexts:
    """The reviews of all events, memory-mapped from a cache beside the dataset, which is written on first use.

    Args:
        data_dir: the folder of the prepared dataset.
        fingerprint: of its content; a cache of another one is not read.
    """

    def __init__(self, data_dir: str | Path, fingerprint: str):
        self._data_dir = Path(data_dir)
        self._folder = self._data_dir / f"reviews-{fingerprint[:16]}"
        self._texts: pa.LargeStringArray | None = None

    def __call__(self, events: np.ndarray) -> list[str]:
        """The texts of the events at these places of the flat columns, int [B]; "" where there is none."""
        if self._texts is None:
            self._texts = self._open()
        return self._texts.take(pa.array(np.asarray(events, np.int64))).to_pylist()

    def _open(self) -> pa.LargeStringArray:
        try:
            characters, offsets = (np.load(self._folder / name, mmap_mode="r") for name in self._FILES)
        except (OSError, ValueError, EOFError):
            characters, offsets = self._read()
        return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(characters))

    _FILES = ("characters.npy", "offsets.npy")

    def _read(self) -> tuple[np.ndarray, np.ndarray]:
        parts, lengths = [], [np.zeros(1, np.int64)]
        for batch in _batches(tfds.builder_from_directory(self._data_dir), ("review",)):
            reviews = batch["events"]["review"].flat_values.numpy().tolist()
            parts.append(np.frombuffer(b"".join(reviews), np.uint8))
            lengths.append(np.fromiter(map(len, reviews), np.int64, len(reviews)))
        arrays = np.concatenate(parts), np.cumsum(np.concatenate(lengths))
        shutil.rmtree(self._folder, ignore_errors=True)  # where it is broken
        try:
            with replacing(self._folder) as partial:
                partial.mkdir()
                for name, array in zip(self._FILES, arrays, strict=True):
                    np.save(partial / name, array)
        except OSError as error:
            _LOGGER.warning("reviews are not cached, so the next start decodes them again: %s", error)
        return arrays


def _read_columns(dataset: tfds.core.DatasetBuilder) -> dict[str, np.ndarray]:
    """Decodes the whole dataset in its stored order, leaving the reviews unread."""
    parts = {key: [] for key in (*NUMBERS, "lengths", "user_ids")}
    for batch in _batches(dataset, NUMBERS):
        for key in NUMBERS:
            parts[key].append(batch["events"][key].flat_values.numpy())
        parts["lengths"].append(batch["events"]["item"].row_lengths().numpy())
        parts["user_ids"].append(batch["user_id"].numpy().astype(np.bytes_))
    columns = {key: np.concatenate(values) for key, values in parts.items()}
    lengths = columns.pop("lengths")
    columns["offsets"] = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    columns["user_ids"] = np.char.decode(columns["user_ids"], "utf-8")
    return columns


def _batches(dataset: tfds.core.DatasetBuilder, names: tuple[str, ...]) -> Iterator[dict]:
    """Users in the stored order, many at once, with the columns `names` of their events and no other."""
    events = dataset.as_dataset(
        split=SPLIT,
        shuffle_files=False,
        decoders=tfds.decode.PartialDecoding({"user_id": True, "events": dict.fromkeys(names, True)}),
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )
    return iter(events.ragged_batch(_READ_USERS))

"""A dataset's flat columns and review texts beside its records: written once by the build, memory-mapped ever after.

Decoding the records of ML-20M takes about half a minute.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from user_llm.builders.built import COLUMNS, NUMBERS, REVIEWS
from user_llm.builders.timelines import SPLIT

_READ_USERS = 1024  # users decoded at once


def write_columns(folder: Path) -> None:
    """Writes the columns of the dataset in `folder`, whose records are there."""
    # What stands on the disk alone: TFDS's own features allow to leave columns out.
    dataset = tfds.builder_from_directory(folder)
    (folder / COLUMNS).mkdir(exist_ok=True)
    columns = _numbers(dataset)
    if dataset.info.metadata["has_reviews"]:
        columns |= _reviews(dataset)
    for name, column in columns.items():
        np.save(folder / COLUMNS / f"{name}.npy", column)


def _numbers(dataset: tfds.core.DatasetBuilder) -> dict[str, np.ndarray]:
    """All columns but the reviews, which are left unread, in the stored order."""
    parts: dict[str, list[np.ndarray]] = {key: [] for key in (*NUMBERS, "lengths", "user_ids")}
    for batch in _batches(dataset, NUMBERS):
        for key in NUMBERS:
            parts[key].append(batch["events"][key].flat_values.numpy())
        parts["lengths"].append(batch["events"]["item"].row_lengths().numpy())
        parts["user_ids"].append(batch["user_id"].numpy().astype(np.bytes_))
    columns = {key: np.concatenate(values) for key, values in parts.items()}
    columns["offsets"] = np.concatenate([[0], np.cumsum(columns.pop("lengths"), dtype=np.int64)])
    columns["user_ids"] = np.char.decode(columns["user_ids"], "utf-8")
    return columns


def _reviews(dataset: tfds.core.DatasetBuilder) -> dict[str, np.ndarray]:
    parts, lengths = [], [np.zeros(1, np.int64)]
    for batch in _batches(dataset, ("review",)):
        reviews = batch["events"]["review"].flat_values.numpy().tolist()
        parts.append(np.frombuffer(b"".join(reviews), np.uint8))
        lengths.append(np.fromiter(map(len, reviews), np.int64, len(reviews)))
    return dict(zip(REVIEWS, (np.concatenate(parts), np.cumsum(np.concatenate(lengths))), strict=True))


def _batches(dataset: tfds.core.DatasetBuilder, names: tuple[str, ...]) -> Iterator[dict]:
    """Users in the stored order, many at once, with the columns `names` of their events and no other."""
    events = dataset.as_dataset(
        split=SPLIT,
        shuffle_files=False,
        decoders=tfds.decode.PartialDecoding({"user_id": True, "events": dict.fromkeys(names, True)}),
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )
    return iter(events.ragged_batch(_READ_USERS))

"""Timelines as flat columns: read once from the TFDS dataset, cached beside it."""

import dataclasses
import logging
import os
import zipfile
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from tfds_builders.movielens.movielens_dataset_builder import Builder as MovieLens
from tfds_builders.simulated import SimulatedConfig
from tfds_builders.timelines import SPLIT
from user_llm.data.splits import count_windows
from user_llm.files import replacing

_LOGGER = logging.getLogger(__name__)
_BUILDERS = {"movielens": MovieLens}
_COLUMNS = ("item", "rating", "timestamp")
_READ_USERS = 1024  # users decoded at once


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Catalogue:
    """The items.

    Titles are unique, because an item is answered by its title: among items of one title, the first (by item
    id) keeps it and later ones get " [2]", " [3]" and so on behind it.

    Attributes:
        titles: title by item id; "" for 0, the padding.
        raw_ids: the source's id by item id; "" for 0.
        category_names: name by category id; "" for 0.
        item_categories: int32 [I+1, C], each item's category ids, right-padded with 0.
        duplicates: how many titles carry such a number.
    """

    titles: list[str]
    raw_ids: list[str]
    category_names: list[str]
    item_categories: np.ndarray
    duplicates: int = 0

    @classmethod
    def build(
        cls,
        titles: list[str],
        raw_ids: list[str],
        category_names: list[str],
        item_categories: list[list[int]],
    ) -> "Catalogue":
        """A catalogue from a dataset's metadata: names made unique, category lists padded."""
        widest = max(map(len, item_categories), default=0)
        categories = np.zeros((len(titles), max(widest, 1)), np.int32)
        for item, ids in enumerate(item_categories):
            categories[item, : len(ids)] = ids
        unique = _unique(titles)
        renamed = sum(a != b for a, b in zip(titles, unique, strict=True))
        return cls(unique, list(raw_ids), list(category_names), categories, renamed)

    @property
    def num_items(self) -> int:
        """Items, without the padding."""
        return len(self.titles) - 1


def _unique(titles: list[str]) -> list[str]:
    taken, seen = set(titles), set()
    unique = titles[:1]  # the padding's
    for title in titles[1:]:
        name, number = title, 2
        while name in seen or (name != title and name in taken):  # a source may hold "Title [2]" itself
            name, number = f"{title} [{number}]", number + 1
        seen.add(name)
        unique.append(name)
    return unique


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TimelineTable:
    """All timelines as flat columns, user after user, each in time order.

    User u's events are `offsets[u] : offsets[u + 1]`.

    Attributes:
        name: the dataset, as "movielens/20m".
        item: int32 [E], item ids from 1.
        rating: int32 [E], rating classes from 1.
        timestamp: int64 [E], seconds since 1970.
        offsets: int64 [users + 1].
        user_ids: the source's id of each user.
        catalogue: the items.
        rating_names: name by rating class; "" for 0, the padding.
        fingerprint: SHA-256 of the source's content.
        summary: what the builder counted: rows read, kept and rejected, users, items, timeline lengths.
    """

    name: str
    item: np.ndarray
    rating: np.ndarray
    timestamp: np.ndarray
    offsets: np.ndarray
    user_ids: list[str]
    catalogue: Catalogue
    rating_names: list[str]
    fingerprint: str
    summary: dict

    @property
    def num_users(self) -> int:
        """Users, with however few events."""
        return len(self.offsets) - 1

    def window_counts(
        self, history_length: int, min_history: int | None = None, validation: bool = False
    ) -> dict[str, int]:
        """Windows in each split, and the users that have any (see `splits`)."""
        return count_windows(np.diff(self.offsets), history_length, min_history, validation)


def load_timelines(
    name: str,
    *,
    raw_path: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
    max_malformed: float = 0.0,
    simulated: SimulatedConfig | dict | None = None,
) -> TimelineTable:
    """Loads a dataset's timelines, building the dataset on first use.

    The flat columns are cached in the dataset's own folder, for the dataset's fingerprint: decoding ML-20M
    takes about half a minute, reading its cache two seconds.

    Args:
        name: "family/config", as "movielens/latest_small".
        raw_path: zip or folder with the official files; None downloads them.
        data_dir: where datasets live; None is TFDS's default.
        max_malformed: share of malformed source rows above which a build stops.
        simulated: what to simulate; "movielens/simulated" only.

    Raises:
        ValueError: an unknown name, an option that does not belong to it, a source that cannot be read, or
            `data_dir` holds this dataset built from another source.
    """
    family, _, config = name.partition("/")
    if family not in _BUILDERS or config not in _BUILDERS[family].builder_configs:
        known = [f"{key}/{config}" for key in _BUILDERS for config in _BUILDERS[key].builder_configs]
        raise ValueError(f"unknown dataset {name!r}: expected one of {', '.join(known)}.")
    builder = _BUILDERS[family](
        config=config, data_dir=data_dir, raw_path=raw_path, max_malformed=max_malformed, simulated=simulated
    )
    builder.download_and_prepare()
    # Read from disk: the files alone say what they hold, and TFDS's own features allow to leave columns out.
    dataset = tfds.builder_from_directory(builder.data_dir)
    metadata = dataset.info.metadata
    columns = _cached_columns(dataset, metadata["fingerprint"])
    return TimelineTable(
        name=name,
        item=columns["item"],
        rating=columns["rating"],
        timestamp=columns["timestamp"],
        offsets=columns["offsets"],
        user_ids=columns["user_ids"].tolist(),
        catalogue=Catalogue.build(
            metadata["titles"], metadata["raw_ids"], metadata["category_names"], metadata["item_categories"]
        ),
        rating_names=list(metadata["rating_names"]),
        fingerprint=metadata["fingerprint"],
        summary=dict(metadata["summary"]),
    )


def _cached_columns(dataset: tfds.core.DatasetBuilder, fingerprint: str) -> dict[str, np.ndarray]:
    """The flat columns from the cache beside the dataset, which is written when missing, stale or broken."""
    cache = Path(dataset.data_dir) / "columns.npz"
    try:
        with np.load(cache) as stored:
            if stored["fingerprint"].item() == fingerprint:
                return {key: stored[key] for key in (*_COLUMNS, "offsets", "user_ids")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # nothing there, or not whole: the dataset itself has it all
    columns = _read_columns(dataset)
    try:
        with replacing(cache) as partial, partial.open("wb") as file:
            np.savez(file, fingerprint=np.array(fingerprint), **columns)
    except OSError as error:  # a shared dataset that may only be read, a full disk
        _LOGGER.warning("timelines are not cached, so the next start decodes them again: %s", error)
    return columns


def _read_columns(dataset: tfds.core.DatasetBuilder) -> dict[str, np.ndarray]:
    """Decodes the whole dataset in its stored order, many users at once, leaving the reviews unread."""
    events = dataset.as_dataset(
        split=SPLIT,
        shuffle_files=False,
        decoders=tfds.decode.PartialDecoding({"user_id": True, "events": dict.fromkeys(_COLUMNS, True)}),
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )
    parts = {key: [] for key in (*_COLUMNS, "lengths", "user_ids")}
    for batch in events.ragged_batch(_READ_USERS):
        for key in _COLUMNS:
            parts[key].append(batch["events"][key].flat_values.numpy())
        parts["lengths"].append(batch["events"]["item"].row_lengths().numpy())
        parts["user_ids"].append(batch["user_id"].numpy().astype(np.bytes_))
    columns = {key: np.concatenate(values) for key, values in parts.items()}
    lengths = columns.pop("lengths")
    columns["offsets"] = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    columns["user_ids"] = np.char.decode(columns["user_ids"], "utf-8")
    return columns

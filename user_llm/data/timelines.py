"""Timelines as flat columns, and the catalogue they refer to."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from user_llm.builders.built import CATALOGUE, COLUMNS, METADATA
from user_llm.builders.catalogue import write_columns
from user_llm.columns import Texts, open_column
from user_llm.data.splits import count_windows
from user_llm.errors import UserError
from user_llm.files import read_json

if TYPE_CHECKING:
    from user_llm.builders.simulated import SimulatedConfig


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

    titles: Sequence[str]
    raw_ids: Sequence[str]
    category_names: Sequence[str]
    item_categories: np.ndarray
    duplicates: int = 0

    @classmethod
    def open(cls, folder: Path, duplicates: int = 0) -> "Catalogue":
        """The catalogue in a folder (`built.CATALOGUE`): texts stay in their files until they are asked for."""
        ids, offsets = (open_column(folder, f"category_{name}") for name in ("ids", "offsets"))
        return cls(
            titles=Texts.open(folder, "title"),
            raw_ids=Texts.open(folder, "raw_id"),
            category_names=list(Texts.open(folder, "category_name")),
            item_categories=_padded(ids, offsets),
            duplicates=duplicates,
        )

    def save(self, folder: Path) -> None:
        """Writes it into a folder, for `open`."""
        ids = self.item_categories
        write_columns(
            folder, self.titles, self.raw_ids, self.category_names, ids[ids > 0], np.count_nonzero(ids, axis=1)
        )

    @property
    def num_items(self) -> int:
        """Items, without the padding."""
        return len(self.titles) - 1


def _padded(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Rows of different lengths, one behind the other, as int32 [n, C], right-padded with 0; C is at least 1."""
    lengths = np.diff(offsets)
    padded = np.zeros((len(lengths), max(int(lengths.max()), 1)), np.int32)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = values
    return padded


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TimelineTable:
    """All timelines as flat columns, user after user, each in time order.

    User u's events are `offsets[u] : offsets[u + 1]`.

    Attributes:
        name: the dataset, as "movielens/20m".
        item: int32 [E], item ids from 1.
        rating: the narrowest unsigned int [E] that holds them, rating classes from 1.
        timestamp: int64 [E], seconds since 1970.
        offsets: int64 [users + 1].
        user_ids: the source's id of each user.
        catalogue: the items.
        rating_names: name by rating class; "" for 0, the padding.
        fingerprint: SHA-256 of the source's content.
        summary: what the builder counted: rows read, kept and rejected, users, items, timeline lengths.
        review_texts: the review of each event, "" where one has none; None for a dataset without.
    """

    name: str
    item: np.ndarray
    rating: np.ndarray
    timestamp: np.ndarray
    offsets: np.ndarray
    user_ids: Sequence[str]
    catalogue: Catalogue
    rating_names: list[str]
    fingerprint: str
    summary: dict[str, Any]
    review_texts: Texts | None = None

    @property
    def has_reviews(self) -> bool:
        """Whether any event has a review."""
        return self.review_texts is not None

    def reviews(self, events: np.ndarray) -> list[str]:
        """The reviews of the events at these places of the flat columns, int [B]; "" where one has none.

        Raises:
            UserError: the dataset has no reviews.
        """
        if self.review_texts is None:
            raise UserError(f"dataset {self.name!r} has no reviews.")
        return self.review_texts.take(events)

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
    raw_path: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    max_malformed: float = 0.0,
    simulated: "SimulatedConfig | dict[str, Any] | None" = None,
    options: Mapping[str, int | str] | None = None,
    wait: bool = False,
) -> TimelineTable:
    """Loads a dataset's timelines, building the dataset on first use.

    Args:
        name: "family/config", as "movielens/latest_small".
        raw_path: zip or folder with the official files; None downloads them.
        data_dir: where datasets live; None is TFDS's default.
        max_malformed: share of malformed source rows above which a build stops.
        simulated: what to simulate; "<family>/simulated" only.
        options: the family's further build options (`TimelineBuilder.OPTIONS`).
        wait: whether to wait for another process that is building this dataset, as the processes of one run do.

    Raises:
        UserError: an unknown name, an option that does not belong to it, a source that cannot be read, or
            `data_dir` holds this dataset built from another source or with other options, or damaged; another
            process is building it and `wait` is False.
    """
    from user_llm.builders.families import builder_of  # brings TFDS, and a finished run is loaded without its data

    builder = builder_of(
        name,
        data_dir=data_dir,
        raw_path=raw_path,
        max_malformed=max_malformed,
        simulated=simulated,
        options=options,
    )
    builder.download_and_prepare(wait=wait)
    return open_timelines(Path(builder.data_dir), name)


def open_timelines(folder: Path, name: str) -> TimelineTable:
    """Opens the timelines in the folder of a built dataset; their columns are mapped, and nothing of them is read.

    Raises:
        UserError: the metadata are damaged. Nothing else is checked: `load_timelines` compares the files with what was
            built.
    """
    metadata = read_json(folder / METADATA, f"delete {folder}, and build anew")
    columns = folder / COLUMNS
    return TimelineTable(
        name=name,
        **{column: open_column(columns, column) for column in ("item", "rating", "timestamp", "offsets")},
        user_ids=Texts.open(columns, "user_id"),
        catalogue=Catalogue.open(folder / CATALOGUE, metadata["duplicates"]),
        rating_names=list(metadata["rating_names"]),
        fingerprint=metadata["fingerprint"],
        summary=dict(metadata["summary"]),
        review_texts=Texts.open(columns, "review") if metadata["has_reviews"] else None,
    )

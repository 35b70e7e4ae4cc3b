"""Timelines as flat columns, and the catalogue they refer to."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from user_llm.builders.built import METADATA
from user_llm.builders.simulated import SimulatedConfig
from user_llm.data.columns import ReviewTexts, open_columns
from user_llm.data.splits import count_windows
from user_llm.errors import UserError
from user_llm.files import read_json


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
        review_texts: reads the reviews; None for a dataset without.
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
    summary: dict[str, Any]
    review_texts: ReviewTexts | None = None

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
        return self.review_texts(events)

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
    simulated: SimulatedConfig | dict[str, Any] | None = None,
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
    # Read from disk: the files alone say what they hold.
    metadata = read_json(Path(builder.data_dir) / METADATA, f"delete {builder.data_dir}, and build anew")
    columns = open_columns(builder.data_dir)
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
        review_texts=ReviewTexts(builder.data_dir) if metadata["has_reviews"] else None,
    )

"""The schema every builder shares, and the out-of-core road from interaction rows to timelines.

A builder loads its rows into a DuckDB table or view `events` with the columns

    user_id (BIGINT or VARCHAR), item, rating (INTEGER), timestamp, line (BIGINT) [, review (VARCHAR)]

where `line` is the row's position in the source. Grouping and the stable sort then run in DuckDB, which spills
to disk above its memory limit; Python sees whole columns of many users, never one row.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow_datasets as tfds

SPLIT = "users"
"""The one split of every dataset: all users, ordered by user id."""

WINDOW_LENGTHS = (20, 50, 100, 200)
"""History lengths the summary counts windows for."""

END_OF_TIME = 4_102_444_800
"""2100-01-01 in seconds: a later timestamp is in milliseconds, or wrong."""

_NUMBERS = ("item", "rating", "timestamp")
_MEMORY_LIMIT = "2GB"
_BATCH_ROWS = 1 << 20


class EventSequence(tfds.features.Sequence):
    """A `tfds.features.Sequence` of scalars that encodes whole columns.

    The stock feature visits every field of every event in Python: minutes for ML-20M. What is written is the same,
    and `features.json` names the stock feature: `tfds.builder_from_directory` reads the dataset without this package.
    """

    def get_serialized_info(self) -> dict[str, tfds.features.TensorInfo]:
        return {
            name: tfds.features.TensorInfo(shape=(None,), dtype=info.np_dtype)
            for name, info in self.feature.get_serialized_info().items()
        }

    def encode_example(self, events: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Checks one timeline's columns, each `[events]`, and passes them on as they are; `review` may have no row.

        Raises:
          ValueError: a column is missing or unknown, or the columns are not one-dimensional and equally long.
        """
        expected = set(self.feature.keys())
        if set(events) != expected:
            raise ValueError(f"A timeline needs the columns {sorted(expected)}, got {sorted(events)}.")
        shapes = {name: np.shape(column) for name, column in events.items() if name != "review" or len(column)}
        if len(set(shapes.values())) != 1 or len(shapes["item"]) != 1:
            raise ValueError(f"A timeline's columns must be one-dimensional and equally long, got {shapes}.")
        return events

    def to_proto(self):
        return tfds.features.Sequence(self.feature).to_proto()


FEATURES = tfds.features.FeaturesDict(
    {
        # The source's own user id.
        "user_id": tfds.features.Text(),
        # In time order; equal timestamps keep the order of the source's rows.
        "events": EventSequence(
            {
                "item": tfds.features.Scalar(np.int32, doc="Dense item id from 1; 0 is padding."),
                "rating": tfds.features.Scalar(np.int32, doc="Rating class id from 1; 0 is padding."),
                "timestamp": tfds.features.Scalar(np.int64, doc="Seconds since 1970."),
                "review": tfds.features.Text(doc="One an event; none at all where the source has no reviews."),
            }
        ),
    }
)


def open_database(folder: Path) -> duckdb.DuckDBPyConnection:
    """A DuckDB database in `folder` that holds at most 2 GB in memory and spills the rest into `folder`."""
    return duckdb.connect(str(folder / "build.duckdb"), config=_config(folder))


def open_passing_database(folder: Path) -> duckdb.DuckDBPyConnection:
    """One of a worker's, which is gone when it is closed: of one thread, as many workers as cores keep these busy."""
    return duckdb.connect(config={**_config(folder), "threads": 1})


def _config(folder: Path) -> dict[str, str | bool | int | float | list[str]]:
    return {"memory_limit": _MEMORY_LIMIT, "temp_directory": str(folder / "spill")}


class Block(NamedTuple):
    """Whole users, with their events one behind the other, each user's in time order.

    Attributes:
      user_ids: of the users.
      ends: int64 [users], where the events of each end; those of the next begin there.
      columns: `item`, `rating`, `timestamp`, each [events].
      reviews: text [events], "" where there is none; None without reviews.
    """

    user_ids: list[str]
    ends: np.ndarray
    columns: dict[str, np.ndarray]
    reviews: pa.Array | None

    def examples(self) -> Iterator[dict[str, Any]]:
        """The records of the users (`FEATURES`)."""
        reviews = np.zeros(0, object)
        if self.reviews is not None:  # as bytes, which TFDS need not encode one by one
            reviews = self.reviews.cast(pa.binary()).to_numpy(zero_copy_only=False)
        for user_id, start, end in zip(self.user_ids, [0, *self.ends[:-1].tolist()], self.ends.tolist(), strict=True):
            events = {name: column[start:end] for name, column in self.columns.items()}
            yield {"user_id": user_id, "events": {**events, "review": reviews[start:end]}}


def read_blocks(connection: duckdb.DuckDBPyConnection, batch_rows: int = _BATCH_ROWS) -> Iterator[Block]:
    """Yields all of `events` in the order of user ids, the timelines in time order.

    Args:
      connection: a database that has `events`.
      batch_rows: rows taken from DuckDB at a time.
    """
    return blocks_of(connection.sql(in_order(reviews=has_reviews(connection))).to_arrow_reader(batch_rows))


def in_order(*, reviews: bool) -> str:
    """SQL for `events` in the order of user ids, the timelines in time order; with their reviews, or without."""
    names = ", ".join([*_NUMBERS, *(["review"] if reviews else [])])
    return f"SELECT user_id, {names} FROM events ORDER BY user_id, timestamp, line"


def blocks_of(batches: Iterable[pa.RecordBatch]) -> Iterator[Block]:
    """Yields whole users from rows as `in_order` gives them."""
    rest = None
    for batch in batches:
        rows = pa.Table.from_batches([batch] if rest is None else [rest, batch]).combine_chunks().to_batches()[0]
        # The last user of a batch may go on in the next.
        starts = _first_rows(rows)
        rest = rows.slice(starts[-1])
        if len(starts) > 1:
            yield _block(rows.slice(0, starts[-1]), starts[:-1])
    if rest is not None:
        yield _block(rest, np.zeros(1, np.int64))


def _first_rows(rows: pa.RecordBatch) -> np.ndarray:
    """Where the users begin, int64 [users]."""
    users = rows.column("user_id")
    changes = pc.not_equal(users.slice(1), users.slice(0, len(users) - 1)).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.flatnonzero(changes) + 1])


def _block(rows: pa.RecordBatch, starts: np.ndarray) -> Block:
    return Block(
        user_ids=rows.column("user_id").take(pa.array(starts)).cast(pa.string()).to_pylist(),
        ends=np.append(starts[1:], len(rows)).astype(np.int64),
        columns={name: rows.column(name).to_numpy() for name in _NUMBERS},
        reviews=pc.fill_null(rows.column("review"), "") if "review" in rows.schema.names else None,
    )


def has_reviews(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether any row of `events` has a review with text."""
    if "review" not in _columns(connection):
        return False
    query = "SELECT count(*) FROM (SELECT 1 FROM events WHERE review <> '' LIMIT 1)"
    ((found,),) = connection.execute(query).fetchall()
    return found > 0


def _columns(connection: duckdb.DuckDBPyConnection) -> set[str]:
    return {row[0] for row in connection.execute("DESCRIBE events").fetchall()}


class Measures(NamedTuple):
    """What is counted of timelines.

    Attributes:
      lengths: int64 [users], events of each.
      items: int [n], the different items.
      pairs: how many different pairs of user and item there are.
      reviews: whether there are any, see `has_reviews`.
    """

    lengths: np.ndarray
    items: np.ndarray
    pairs: int
    reviews: bool


def measure(connection: duckdb.DuckDBPyConnection) -> Measures:
    """Counts `events`."""
    ((pairs,),) = connection.execute("SELECT count(*) FROM (SELECT DISTINCT user_id, item FROM events)").fetchall()
    return Measures(
        lengths=connection.execute("SELECT count(*) AS n FROM events GROUP BY user_id").fetchnumpy()["n"],
        items=connection.execute("SELECT DISTINCT item FROM events").fetchnumpy()["item"],
        pairs=pairs,
        reviews=has_reviews(connection),
    )


def summarise_timelines(measures: Measures) -> dict:
    """The summary of all timelines: events, users, items, timeline lengths, repeated pairs, windows.

    A user of n events has n - N windows of N events and a label; the last is `test`, the others `train`.
    Rows that repeat a (user, item) pair are events like any other, and counted beyond the first.
    """
    lengths = measures.lengths
    windows = {}
    for history_length in WINDOW_LENGTHS:
        per_user = np.maximum(lengths - history_length, 0)
        users, total = int(np.count_nonzero(per_user)), int(per_user.sum())
        windows[str(history_length)] = {
            "users": users,
            "windows": total,
            "train": total - users,
            "test": users,
        }
    quantiles = np.quantile(lengths, (0, 0.25, 0.5, 0.75, 0.99, 1)).tolist() if len(lengths) else [0.0] * 6
    return {
        "events": int(lengths.sum()),
        "users": len(lengths),
        "items_with_events": len(measures.items),
        "repeated_user_item_rows": int(lengths.sum()) - measures.pairs,
        "timeline_length": dict(zip(("min", "25%", "50%", "75%", "99%", "max"), quantiles, strict=True)),
        "windows": windows,
    }

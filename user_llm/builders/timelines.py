"""The schema every builder shares, and the out-of-core road from interaction rows to timelines.

A builder loads its rows into a DuckDB table or view `events` with the columns

    user_id (BIGINT or VARCHAR), item, rating (INTEGER), timestamp, line (BIGINT) [, review (VARCHAR)]

where `line` is the row's position in the source. Grouping and the stable sort then run in DuckDB, which spills
to disk above its memory limit; Python sees one array per user and column, never one row.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import tensorflow_datasets as tfds

SPLIT = "users"
"""The one split of every dataset: all users, ordered by user id."""

WINDOW_LENGTHS = (20, 50, 100, 200)
"""History lengths the summary counts windows for."""

END_OF_TIME = 4_102_444_800
"""2100-01-01 in seconds: a later timestamp is in milliseconds, or wrong."""

_MEMORY_LIMIT = "2GB"
_BATCH_ROWS = 1 << 20


class EventSequence(tfds.features.Sequence):
    """A `tfds.features.Sequence` of scalars that encodes whole columns.

    The stock feature visits every field of every event in Python: minutes for ML-20M. What is written is the same,
    and `features.json` names the stock feature: `tfds.builder_from_directory` reads the dataset without this package,
    and with `tfds.decode.PartialDecoding`, which knows no other.
    """

    def get_serialized_info(self) -> dict[str, tfds.features.TensorInfo]:
        return {
            name: tfds.features.TensorInfo(shape=(None,), dtype=info.np_dtype)
            for name, info in self.feature.get_serialized_info().items()
        }

    def encode_example(self, events: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Checks one timeline's columns, each `[events]`, and passes them on as they are.

        Raises:
          ValueError: a column is missing or unknown, or the columns are not one-dimensional and equally long.
        """
        expected = set(self.feature.keys())
        if set(events) != expected:
            raise ValueError(f"A timeline needs the columns {sorted(expected)}, got {sorted(events)}.")
        shapes = {name: np.shape(column) for name, column in events.items()}
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
                "review": tfds.features.Text(doc="Empty where the source has no reviews."),
            }
        ),
    }
)


def open_database(folder: Path) -> duckdb.DuckDBPyConnection:
    """A DuckDB database in `folder` that holds at most 2 GB in memory and spills the rest into `folder`."""
    return duckdb.connect(
        str(folder / "build.duckdb"),
        config={"memory_limit": _MEMORY_LIMIT, "temp_directory": str(folder / "spill")},
    )


def iterate_timelines(
    connection: duckdb.DuckDBPyConnection, batch_rows: int = _BATCH_ROWS
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yields `(user_id, {column: [events]})` from `events` in the order of user ids, each timeline in time order.

    Args:
      connection: a database that has `events`; without its column `review`, reviews are empty.
      batch_rows: rows taken from DuckDB at a time.
    """
    available = _columns(connection)
    names = [name for name in ("item", "rating", "timestamp", "review") if name in available]
    reader = connection.sql(
        f"SELECT user_id, {', '.join(names)} FROM events ORDER BY user_id, timestamp, line"
    ).to_arrow_reader(batch_rows)

    def timeline(columns: dict[str, np.ndarray], start: int, stop: int):
        events = {name: columns[name][start:stop] for name in names}
        events.setdefault("review", np.full(stop - start, b"", dtype=object))
        return str(columns["user_id"][start]), events

    rest: dict[str, np.ndarray] = {}
    for batch in reader:
        columns = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in ("user_id", *names)}
        if rest:
            columns = {name: np.concatenate([rest[name], columns[name]]) for name in columns}
        users = columns["user_id"]
        starts = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]]))
        for start, stop in pairwise(starts.tolist()):
            yield timeline(columns, start, stop)
        # The last user of a batch may go on in the next.
        rest = {name: column[starts[-1] :] for name, column in columns.items()}
    if rest:
        yield timeline(rest, 0, len(rest["user_id"]))


def has_reviews(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether any row of `events` has a review with text."""
    if "review" not in _columns(connection):
        return False
    query = "SELECT count(*) FROM (SELECT 1 FROM events WHERE review <> '' LIMIT 1)"
    ((found,),) = connection.execute(query).fetchall()
    return found > 0


def _columns(connection: duckdb.DuckDBPyConnection) -> set[str]:
    return {row[0] for row in connection.execute("DESCRIBE events").fetchall()}


def summarise_timelines(connection: duckdb.DuckDBPyConnection) -> dict:
    """Counts the table `events`: events, users, items, timeline lengths, repeated pairs, windows.

    A user of n events has n - N windows of N events and a label; the last is `test`, the others `train`.
    Rows that repeat a (user, item) pair are events like any other, and counted beyond the first.
    """
    lengths = connection.execute("SELECT count(*) AS n FROM events GROUP BY user_id").fetchnumpy()["n"]
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
    ((items, distinct_pairs),) = connection.execute(
        "SELECT count(DISTINCT item), count(*) FROM (SELECT DISTINCT user_id, item FROM events)"
    ).fetchall()
    quantiles = np.quantile(lengths, (0, 0.25, 0.5, 0.75, 0.99, 1)).tolist() if len(lengths) else [0.0] * 6
    return {
        "events": int(lengths.sum()),
        "users": len(lengths),
        "items_with_events": items,
        "repeated_user_item_rows": int(lengths.sum()) - distinct_pairs,
        "timeline_length": dict(zip(("min", "25%", "50%", "75%", "99%", "max"), quantiles, strict=True)),
        "windows": windows,
    }

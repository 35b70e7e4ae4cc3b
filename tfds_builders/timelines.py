"""The schema every builder shares, and the out-of-core road from interaction rows to timelines.

A builder loads its rows into a DuckDB table `events` whose columns are

    user_id BIGINT or VARCHAR · item INTEGER · rating INTEGER · timestamp BIGINT · line BIGINT [· review VARCHAR]

where `line` is the row's position in the source. The grouping and the stable sort then run in DuckDB, which spills to disk
above its memory limit; Python sees one array per column and user, never one row.
"""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import tensorflow_datasets as tfds

SPLIT = "users"
MEMORY_LIMIT = "2GB"
"""What DuckDB may hold before it spills; the rest of the process needs well under 2 GB even for ML-25M."""

WINDOW_LENGTHS = (20, 50, 100, 200)
"""History lengths the summary counts windows for."""

_BATCH_ROWS = 1 << 20


class EventSequence(tfds.features.Sequence):
    """A `tfds.features.Sequence` of scalars that encodes whole columns.

    The stock feature visits every element in Python, about 20 µs an event: hours of interpreter time per billion events and
    several minutes for ML-20M. The bytes on disk are the same, and `features.json` names the stock feature, so that the
    dataset can be read without this package.
    """

    def get_serialized_info(self) -> dict[str, tfds.features.TensorInfo]:
        return {
            name: tfds.features.TensorInfo(shape=(None,), dtype=info.np_dtype)
            for name, info in self.feature.get_serialized_info().items()
        }

    def encode_example(self, events: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Checks one timeline's columns, each `[events]`, and passes them on as they are.

        Raises:
          ValueError: a column is missing or unknown, not one-dimensional, or longer or shorter than another.
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
        "user_id": tfds.features.Text(doc="The source's own user id."),
        "events": EventSequence(
            {
                "item": tfds.features.Scalar(np.int32, doc="Dense item id from 1 over the catalogue; 0 is padding."),
                "rating": tfds.features.Scalar(np.int32, doc="Rating class id from 1; 0 is padding."),
                "timestamp": tfds.features.Scalar(np.int64, doc="Seconds since 1970."),
                "review": tfds.features.Text(doc="Review text; empty where the source has none."),
            },
            doc="Events in time order; equal timestamps keep the source's row order.",
        ),
    }
)


def open_database(folder: Path) -> duckdb.DuckDBPyConnection:
    """A DuckDB database in `folder` that stays under `MEMORY_LIMIT` and spills to `folder`."""
    return duckdb.connect(
        str(folder / "build.duckdb"),
        config={"memory_limit": MEMORY_LIMIT, "temp_directory": str(folder / "spill")},
    )


def iterate_timelines(connection: duckdb.DuckDBPyConnection) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yields `(user_id, {column: [events]})` from the table `events`, ordered by user id, each timeline by time.

    Equal timestamps of a user keep the order of `line`. A source without a `review` column gets empty reviews.
    """
    columns = [row[0] for row in connection.execute("DESCRIBE events").fetchall()]
    names = [name for name in ("item", "rating", "timestamp", "review") if name in columns]
    reader = connection.sql(
        f"SELECT user_id, {', '.join(names)} FROM events ORDER BY user_id, timestamp, line"
    ).to_arrow_reader(_BATCH_ROWS)
    pending: dict[str, np.ndarray] | None = None
    for record_batch in reader:
        batch = {
            name: record_batch.column(name).to_numpy(zero_copy_only=False) for name in ("user_id", *names)
        }
        if pending is not None:
            batch = {name: np.concatenate([pending[name], batch[name]]) for name in batch}
        users = batch["user_id"]
        starts = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]]))
        for start, stop in zip(starts[:-1], starts[1:], strict=True):
            yield _timeline(batch, names, start, stop)
        # The last user of a batch may go on in the next one.
        pending = {name: column[starts[-1] :] for name, column in batch.items()}
    if pending is not None:
        yield _timeline(pending, names, 0, len(pending["user_id"]))


def _timeline(batch: dict[str, np.ndarray], names: list[str], start: int, stop: int):
    events = {name: batch[name][start:stop] for name in names}
    events.setdefault("review", np.full(stop - start, b"", dtype=object))
    return str(batch["user_id"][start]), events


def summarise_timelines(connection: duckdb.DuckDBPyConnection) -> dict:
    """Counts of the table `events`: users, items, timeline lengths, windows per history length, repeated pairs.

    A user of n events gives n - N windows of N events and a label; the last is `test`, the others are `train` (DESIGN 4).
    """
    lengths = connection.execute("SELECT count(*) AS n FROM events GROUP BY user_id").fetchnumpy()["n"]
    quantiles = np.quantile(lengths, [0, 0.25, 0.5, 0.75, 0.99, 1]).tolist()
    windows = {}
    for history_length in WINDOW_LENGTHS:
        long_enough = lengths[lengths > history_length]
        total = int((long_enough - history_length).sum())
        windows[str(history_length)] = {
            "users": len(long_enough),
            "windows": total,
            "train": total - len(long_enough),
            "test": len(long_enough),
        }
    repeated = connection.execute(
        "SELECT coalesce(sum(n - 1), 0) FROM (SELECT count(*) AS n FROM events GROUP BY user_id, item)"
    ).fetchone()[0]
    return {
        "events": int(lengths.sum()),
        "users": len(lengths),
        "items_with_events": connection.execute("SELECT count(DISTINCT item) FROM events").fetchone()[0],
        "repeated_user_item_rows": int(repeated),
        "timeline_length": dict(zip(("min", "25%", "50%", "75%", "99%", "max"), quantiles, strict=True)),
        "windows": windows,
    }

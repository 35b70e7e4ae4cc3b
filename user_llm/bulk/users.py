"""Users out of files of events, in batches of arrays: as many users as there are, in the memory of a batch."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from user_llm.builders.custom.config import CustomConfig
from user_llm.builders.custom.events import load_interactions
from user_llm.builders.malformed import RowReport
from user_llm.builders.rejected import report_rejected
from user_llm.builders.sql import literal

_UNKNOWN_ITEM, _UNKNOWN_RATING = "the run's catalogue has no such item", "the run has no such rating"

_CREATE_USERS = """
CREATE TABLE users AS
SELECT
    user_id,
    list(item ORDER BY micros, position) AS items,
    list(rating ORDER BY micros, position) AS ratings,
    list(CAST(micros // 1000000 AS BIGINT) ORDER BY micros, position) AS seconds
FROM (
    SELECT
        interactions.user_id, known.id AS item, coalesce(list_position($ratings, rating), 0) AS rating,
        micros, position,
        row_number() OVER (PARTITION BY interactions.user_id ORDER BY micros DESC, position DESC) AS age
    FROM interactions JOIN known ON known.name = interactions.item
    WHERE reason IS NULL
)
WHERE age <= $length
GROUP BY user_id
ORDER BY user_id
"""


class UserEvents(NamedTuple):
    """The latest events of some users.

    Attributes:
      users: their ids.
      item, rating: int32 `[B, S]`, oldest first, left-padded with 0.
      seconds: int64 `[B, S]`, when the events were, since 1970.
    """

    users: list[str]
    item: np.ndarray
    rating: np.ndarray
    seconds: np.ndarray


class UsersFile:
    """Files of events, one row an event, sorted into users on disk.

    Args:
      config: the files, CSV, JSON lines (either may be gzipped) or Parquet, and which columns mean what.
      names: of the run's items, in the column `item`, by item id from 0 (the padding).
      ratings: the run's, by class from 1.
      length: S, the latest events of a user that are read.
      reads_ratings: whether an event needs one that the run knows.

    Attributes:
      report: rows read and left out, with their reasons.
      unknown: events left out because the run does not know their item or rating.
      count: users with an event that is left.

    Raises:
      MalformedSourceError: a file cannot be read, or lacks a column.
    """

    def __init__(
        self,
        config: CustomConfig,
        names: Sequence[str],
        ratings: Sequence[float],
        *,
        length: int,
        reads_ratings: bool,
    ):
        self._length, self.report = length, RowReport()
        self._folder = tempfile.TemporaryDirectory()
        self._connection = duckdb.connect(str(Path(self._folder.name) / "users.duckdb"))
        known = pa.table({"id": pa.array(range(1, len(names)), pa.int32()), "name": pa.array(names[1:], pa.string())})
        self._connection.register("known", known)
        files = config.named_files()
        load_interactions(self._connection, files, config, self.report)
        self.unknown = self._leave_out(files, list(ratings), reads_ratings)
        self._connection.execute(_CREATE_USERS, {"ratings": list(ratings), "length": length})
        ((self.count,),) = self._connection.execute("SELECT count(*) FROM users").fetchall()

    def _leave_out(self, files: Mapping[str, Path], ratings: list[float], reads_ratings: bool) -> int:
        """Marks and reports events of unknown items and ratings; how many there are."""
        wrong = {_UNKNOWN_ITEM: "item NOT IN (SELECT name FROM known)"}
        if reads_ratings:
            wrong[_UNKNOWN_RATING] = "NOT coalesce(list_contains($ratings, rating), false)"
        # The rows that were malformed are reported already, and go.
        self._connection.execute("DELETE FROM interactions WHERE reason IS NOT NULL")
        for reason, condition in wrong.items():
            self._connection.execute(
                f"""
                UPDATE interactions SET reason = {literal(reason)}, found = concat_ws(', ', item, rating)
                WHERE reason IS NULL AND {condition}
                """,
                {"ratings": ratings} if "$ratings" in condition else {},
            )
        for name in files:
            of_file = f"(FROM interactions WHERE file = {literal(name)})"
            report_rejected(self._connection, of_file, name, self.report)
        ((count,),) = self._connection.execute("SELECT count(reason) FROM interactions").fetchall()
        return int(count)

    def batches(self, size: int, skip: int = 0) -> Iterator[UserEvents]:
        """Users in order of their ids, at most `size` at a time, without the first `skip`."""
        found = self._connection.sql(f"SELECT * FROM users ORDER BY user_id OFFSET {int(skip)}")
        for batch in found.to_arrow_reader(size):
            columns = (_right_aligned(batch.column(name), self._length) for name in ("items", "ratings", "seconds"))
            item, rating, seconds = columns
            yield UserEvents(
                batch.column("user_id").to_pylist(), item.astype(np.int32), rating.astype(np.int32), seconds
            )

    def close(self) -> None:
        """Removes what it has written."""
        self._connection.close()
        self._folder.cleanup()


def _right_aligned(column: pa.ListArray, length: int) -> np.ndarray:
    """Lists as rows int64 `[B, length]`, left-padded with 0."""
    lengths = np.diff(column.offsets.to_numpy())
    rows = np.zeros((len(column), length), np.int64)
    rows[np.arange(length) >= length - lengths[:, None]] = column.flatten().to_numpy()
    return rows

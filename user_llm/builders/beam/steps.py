"""What a worker does: reads a piece of a raw file, deals its rows out to groups of users, brings a group into order.

A group is a range of users. What a step hands on lies in files of the working folder, which every worker sees; a worker
that is started twice writes the same file twice.
"""

import bisect
import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from user_llm.builders import timelines
from user_llm.builders.json_lines import Form
from user_llm.builders.malformed import RowReport
from user_llm.builders.pieces import Source
from user_llm.builders.rules import Rules
from user_llm.builders.sql import literal
from user_llm.builders.text_file import Piece
from user_llm.files import replacing

ROWS, ITEMS, FIRST, CATALOGUE, GROUPS = "rows", "items", "first", "catalogue", "groups"
"""Folders of the working folder: rows of events and of items, a file a piece; those of events of which the catalogue is
made; tables of the catalogue; events in their order, a file a group."""

_BATCH_ROWS = 1 << 16
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")

UserId = int | str


class Task(NamedTuple):
    """A piece to read.

    Attributes:
      number: of the piece, from 0.
      source: what it is of.
      piece: where it is.
    """

    number: int
    source: Source
    piece: Piece


class Part(NamedTuple):
    """What was read of a piece, besides the rows.

    Attributes:
      form: see `Rules.read`.
      report: of the piece.
      rows: how many rows of events are good.
      users: `user_id` of some of them.
    """

    form: Form
    report: RowReport
    rows: int
    users: Sequence[UserId]


class Group(NamedTuple):
    """What was counted of a group.

    Attributes:
      report: of its rows.
      measures: of its timelines.
    """

    report: RowReport
    measures: timelines.Measures


class Keyed(NamedTuple):
    """A group whose users have keys.

    Attributes:
      number: of the group.
      first: key of its first user; the others follow.
    """

    number: int
    first: int


def read_piece(rules: Rules, work: Path, sample_every: int, task: Task) -> Part:
    """Reads a piece into a file of `ROWS` and one of `FIRST`, or of `ITEMS`.

    Args:
      rules: of the dataset.
      work: the working folder.
      sample_every: of so many rows, the user of one is returned.
      task: the piece.

    Raises:
      MalformedSourceError: the file cannot be read.
    """
    report, source = RowReport(), task.source
    with _database(rules) as connection:
        form = rules.read(connection, source, task.piece, report)
        table = rules.ITEMS if source.of_items else rules.ROWS
        columns = connection.table(str(table)).columns
        good = f"FROM {table}" + (" WHERE reason IS NULL" if "reason" in columns else "")
        if source.of_items:
            write_rows(connection, good, file_of(work, ITEMS, task.number))
            return Part(form, report, 0, [])
        if query := rules.for_catalogue():
            write_rows(connection, query, file_of(work, FIRST, task.number))
        write_rows(connection, good, file_of(work, ROWS, task.number))
        users = connection.sql(f"SELECT user_id {good}").to_arrow_table().column("user_id")
        some = pa.array(range(0, len(users), sample_every), pa.int64())
        return Part(form, report, len(users), users.take(some).to_pylist())


def deal(work: Path, user_id: str, bounds: Sequence[UserId], number: int) -> Iterator[tuple[int, bytes]]:
    """Yields the rows of a piece by group, as an Arrow stream each.

    Args:
      work: the working folder.
      user_id: SQL for the user's id.
      bounds: the first user of each group but the first, ascending.
      number: of the piece.
    """
    with _database() as connection:
        query = f"SELECT *, {user_id} AS of_group FROM {_parquet(file_of(work, ROWS, number))} ORDER BY of_group"
        table = connection.sql(query).to_arrow_table().combine_chunks()
    users, rows = table.column("of_group"), table.drop_columns("of_group")
    starts = [bisect.bisect_left(range(len(users)), bound, key=lambda row: users[row].as_py()) for bound in bounds]
    for group, (start, end) in enumerate(zip([0, *starts], [*starts, len(users)], strict=True)):
        if start < end:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, rows.schema, options=_COMPRESSED) as writer:
                writer.write_table(rows.slice(start, end - start))
            yield group, sink.getvalue().to_pybytes()


def order_group(rules: Rules, work: Path, group: int, streams: Iterable[bytes]) -> Group:
    """Makes the events of a group of its rows, and writes them into a file of `GROUPS`, in the order of a dataset.

    Args:
      rules: of the dataset.
      work: the working folder.
      group: its number.
      streams: its rows, as `deal` gives them.
    """
    report = RowReport()
    with _database(rules) as connection:
        rows = pa.concat_tables(pa.ipc.open_stream(stream).read_all() for stream in streams)
        connection.register("dealt", rows)
        connection.execute(f"CREATE TABLE {rules.ROWS} AS FROM dealt")
        for table in rules.OF_CATALOGUE:
            connection.execute(f"CREATE VIEW {table} AS FROM {_parquet(work / CATALOGUE / f'{table}.parquet')}")
        rules.events(connection, report)
        measures = timelines.measure(connection)
        ordered = timelines.in_order(reviews="review" in connection.table("events").columns)
        write_rows(connection, ordered, file_of(work, GROUPS, group))
    return Group(report, measures)


def group_blocks(work: Path, group: int, *, reviews: bool) -> Iterator[timelines.Block]:
    """The users of a group.

    Args:
      work: the working folder.
      group: its number.
      reviews: whether the dataset has reviews.
    """
    with pq.ParquetFile(file_of(work, GROUPS, group)) as file:
        columns = [name for name in file.schema_arrow.names if reviews or name != "review"]
        yield from timelines.blocks_of(file.iter_batches(_BATCH_ROWS, columns=columns))


def group_records(work: Path, reviews: bool, group: Keyed) -> Iterator[tuple[int, dict[str, Any]]]:
    """(key, record) of the users of a group."""
    records = (record for block in group_blocks(work, group.number, reviews=reviews) for record in block.examples())
    yield from enumerate(records, start=group.first)


def file_of(work: Path, folder: str, number: int) -> Path:
    """The file of a piece or group."""
    return work / folder / f"{number:06d}.parquet"


def write_rows(connection: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """Writes what a query gives as Parquet, in its order; nobody sees half a file."""
    with replacing(path) as partial:
        connection.execute(f"COPY ({query}) TO {literal(os.fspath(partial))} (FORMAT parquet)")


def _parquet(path: Path) -> str:
    return f"read_parquet({literal(os.fspath(path))})"


@contextlib.contextmanager
def _database(rules: Rules | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(timelines.open_passing_database(Path(folder))) as connection,
    ):
        if rules:
            rules.prepare(connection)
        yield connection

"""Opens a file of any supported kind as rows of text for DuckDB, with where each row stands."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa

from user_llm.builders.custom.csv_rows import CsvRows, check_columns
from user_llm.builders.custom.parquet_rows import ParquetRows
from user_llm.builders.json_lines import ID, TEXT, TEXT_OR_LIST, Form, check_json_lines, read_json_lines
from user_llm.builders.lines import read_lines
from user_llm.builders.malformed import MalformedSourceError, RowReport
from user_llm.builders.pieces import CSV, LINES, PARQUET
from user_llm.builders.sql import identifier, literal
from user_llm.builders.text_file import WHOLE, Piece

SPACES = "E' \\t\\r\\n'"
"""SQL for the characters that are cut off both ends of a field."""

_TRIMMED = f'trim("{{role}}", {SPACES}) AS "{{role}}"'
_NAMES = (
    f"list_filter(list_transform({{names}}, lambda name: trim(name, {SPACES})), lambda name: name <> '') AS category"
)
_SPLIT = "string_split(category, {separator})"
_JSON_NAMES = """
CASE json_type(category)
    WHEN 'ARRAY' THEN from_json(category, '["VARCHAR"]') ELSE string_split(category->>'$', {separator})
END
"""
_ROWS_FOR_KEYS = 100
"""How many JSON lines are looked at for the keys that there are."""

_JSON_KINDS = {"user": ID, "item": ID, "category": TEXT_OR_LIST}
"""Role → what its values may be; `TEXT` for all others."""


def order_of(connection: duckdb.DuckDBPyConnection, column: str, rows: str) -> str:
    """SQL for a column of ids that sorts as numbers where all ids in `rows` are whole numbers, else as text."""
    ((whole,),) = connection.execute(f"SELECT bool_and({is_whole(column)}) FROM {rows}").fetchall()
    return as_number(column) if whole else column


def is_whole(column: str) -> str:
    """SQL for whether a text spells a whole number: "07" spells none."""
    return f"(CAST({as_number(column)} AS VARCHAR) IS NOT DISTINCT FROM {column})"


def as_number(column: str) -> str:
    """SQL for the whole number that a text spells."""
    return f"try_cast({column} AS BIGINT)"


def field_of(role: str, is_there: bool) -> str:
    """SQL for a role's column of `source_rows`, or for nulls of its type where it has none."""
    if is_there:
        return f'"{role}"'
    return f'CAST(NULL AS VARCHAR{"[]" if role == "category" else ""}) AS "{role}"'


class Rows(NamedTuple):
    """What to read.

    Attributes:
      name: the file's name, in messages.
      path: the file; its kind is told by the end of its name.
      columns: role → name of a column.
      category_separator: splits a category that is no list.
      piece: what to read of the file.
    """

    name: str
    path: Path
    columns: Mapping[str, str]
    category_separator: str
    piece: Piece = WHOLE


def cut_of(path: Path) -> str:
    """How a file is cut into pieces, by the end of its name (`pieces.Source`)."""
    return {"csv": CSV, "tsv": CSV, "parquet": PARQUET}.get(_ending(path), LINES)


def _ending(path: Path) -> str:
    return path.name.lower().removesuffix(".gz").rsplit(".", 1)[-1]


@contextlib.contextmanager
def open_rows(connection: duckdb.DuckDBPyConnection, rows: Rows, report: RowReport) -> Iterator[Form]:
    """Within, `source_rows` may be read, once: `line` and one column a role, trimmed text or null.

    `line` counts from 1 and is the line of text where a row begins; in Parquet, the number of the row. `category` is
    a list of text. Rows that cannot be read as such go to `report`, as does their number.

    Args:
      connection: a database.
      rows: what to read.
      report: receives the counts.

    Yields: what `check_rows` takes, when all pieces are read.

    Raises:
      MalformedSourceError: the file cannot be read, or lacks a column.
    """
    opener = _OPENERS.get(_ending(rows.path))
    if opener is None:
        raise MalformedSourceError(
            f"{rows.path} is of no known kind: expected a name that ends in .{', .'.join(_OPENERS)}; "
            "text may be gzipped (.csv.gz)."
        )
    with opener(connection, rows, report) as (relation, categories, form):
        names = categories.format(separator=literal(rows.category_separator))
        fields = [
            _NAMES.format(names=names) if role == "category" else _TRIMMED.format(role=role) for role in rows.columns
        ]
        connection.execute(f"CREATE TEMP VIEW source_rows AS SELECT line, {', '.join(fields)} FROM {relation}")
        yield form
        connection.execute("DROP VIEW source_rows")


def check_rows(rows: Rows, form: Form, report: RowReport) -> None:
    """Checks a file that was read whole; only JSON lines show so late what they are.

    Raises:
      MalformedSourceError: see `check_json_lines`, or no row has a key for one of the columns.
    """
    if _OPENERS[_ending(rows.path)] is not _open_json:
        return
    check_json_lines(rows.name, form, report)
    found = [key for key in rows.columns.values() if key in form.keys]
    if len(found) < len(rows.columns):
        check_columns(rows.name, rows.columns, list(dict.fromkeys([*found, *_first_keys(rows.path)])))


# An opener gives a table or view, with `line` and a column a role; SQL for the list of names in its `category`; a form.


@contextlib.contextmanager
def _open_csv(connection: duckdb.DuckDBPyConnection, rows: Rows, report: RowReport) -> Iterator[tuple[str, str, Form]]:
    reader = CsvRows(rows.name, rows.path, rows.columns, report, rows.piece)
    connection.register("csv_rows", pa.RecordBatchReader.from_batches(reader.schema, reader.batches()))
    yield "csv_rows", _SPLIT, Form()
    connection.unregister("csv_rows")
    reader.finish()


@contextlib.contextmanager
def _open_json(connection: duckdb.DuckDBPyConnection, rows: Rows, report: RowReport) -> Iterator[tuple[str, str, Form]]:
    kinds = {column: _JSON_KINDS.get(role, TEXT) for role, column in rows.columns.items()}
    form = read_json_lines(connection, rows.path, kinds, "json_lines", report, rows.name, rows.piece)
    fields = (f'{identifier(key)} AS "{role}"' for role, key in rows.columns.items())
    connection.execute(f"CREATE TEMP VIEW json_rows AS SELECT line, {', '.join(fields)} FROM json_lines")
    yield "json_rows", _JSON_NAMES, form
    connection.execute("DROP VIEW json_rows; DROP TABLE json_lines")


def _first_keys(path: Path) -> list[str]:
    """Keys of the first rows of JSON lines."""
    keys: dict[str, None] = {}
    for line in next(read_lines(path)).column("text")[:_ROWS_FOR_KEYS].to_pylist():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            keys |= dict.fromkeys(row if isinstance(row, dict) else ())
    return list(keys)


@contextlib.contextmanager
def _open_parquet(
    connection: duckdb.DuckDBPyConnection, rows: Rows, report: RowReport
) -> Iterator[tuple[str, str, Form]]:
    reader = ParquetRows(rows.name, rows.path, rows.columns, report, rows.piece)
    connection.register("parquet_table", pa.RecordBatchReader.from_batches(reader.schema, reader.batches()))
    fields = ", ".join(
        f'CAST("{role}" AS VARCHAR{"[]" if role in reader.lists else ""}) AS "{role}"' for role in rows.columns
    )
    connection.execute(f"CREATE TEMP VIEW parquet_rows AS SELECT line, {fields} FROM parquet_table")
    try:
        yield "parquet_rows", "category" if reader.lists else _SPLIT, Form()
    except duckdb.Error:
        reader.finish()  # DuckDB wraps what its reader raises
        raise
    connection.execute("DROP VIEW parquet_rows")
    connection.unregister("parquet_table")


_OPENERS = {
    "csv": _open_csv,
    "tsv": _open_csv,
    "json": _open_json,
    "jsonl": _open_json,
    "ndjson": _open_json,
    "parquet": _open_parquet,
}

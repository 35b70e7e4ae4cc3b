"""Opens a file of any supported kind as rows of text for DuckDB, with where each row stands."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb
import pyarrow as pa

from user_llm.builders.custom.csv_rows import CsvRows, check_columns
from user_llm.builders.custom.parquet_rows import ParquetRows
from user_llm.builders.json_lines import ID, TEXT, TEXT_OR_LIST, load_json_lines
from user_llm.builders.lines import read_lines
from user_llm.builders.malformed import MalformedSourceError, RowReport
from user_llm.builders.sql import identifier, literal

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
    ((whole,),) = connection.execute(
        f"SELECT bool_and(CAST(try_cast({column} AS BIGINT) AS VARCHAR) IS NOT DISTINCT FROM {column}) FROM {rows}"
    ).fetchall()
    return f"try_cast({column} AS BIGINT)" if whole else column


def field_of(role: str, is_there: bool) -> str:
    """SQL for a role's column of `source_rows`, or for nulls of its type where it has none."""
    if is_there:
        return f'"{role}"'
    return f'CAST(NULL AS VARCHAR{"[]" if role == "category" else ""}) AS "{role}"'


@contextlib.contextmanager
def open_rows(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    path: Path,
    columns: Mapping[str, str],
    category_separator: str,
    report: RowReport,
) -> Iterator[None]:
    """Within, `source_rows` may be read, once: `line` and one column a role, trimmed text or null.

    `line` counts from 1 and is the line of text where a row begins; in Parquet, the number of the row. `category` is
    a list of text. Rows that cannot be read as such go to `report`, as does their number.

    Args:
      connection: a database.
      name: the file's name, in messages.
      path: the file; its kind is told by the end of its name.
      columns: role → name of a column.
      category_separator: splits a category that is no list.
      report: receives the counts.

    Raises:
      MalformedSourceError: the file cannot be read, or lacks a column.
    """
    endings = path.name.lower().removesuffix(".gz").rsplit(".", 1)
    opener = _OPENERS.get(endings[-1])
    if opener is None:
        raise MalformedSourceError(
            f"{path} is of no known kind: expected a name that ends in .{', .'.join(_OPENERS)}; "
            "text may be gzipped (.csv.gz)."
        )
    with opener(connection, name, path, columns, report) as (relation, categories):
        names = categories.format(separator=literal(category_separator))
        fields = [_NAMES.format(names=names) if role == "category" else _TRIMMED.format(role=role) for role in columns]
        connection.execute(f"CREATE TEMP VIEW source_rows AS SELECT line, {', '.join(fields)} FROM {relation}")
        yield
        connection.execute("DROP VIEW source_rows")


# An opener gives a table or view, with `line` and a column a role, and SQL for the list of names in its `category`.


@contextlib.contextmanager
def _open_csv(
    connection: duckdb.DuckDBPyConnection, name: str, path: Path, columns: Mapping[str, str], report: RowReport
) -> Iterator[tuple[str, str]]:
    rows = CsvRows(name, path, columns, report)
    connection.register("csv_rows", pa.RecordBatchReader.from_batches(rows.schema, rows.batches()))
    yield "csv_rows", _SPLIT
    connection.unregister("csv_rows")
    rows.finish()


@contextlib.contextmanager
def _open_json(
    connection: duckdb.DuckDBPyConnection, name: str, path: Path, columns: Mapping[str, str], report: RowReport
) -> Iterator[tuple[str, str]]:
    kinds = {column: _JSON_KINDS.get(role, TEXT) for role, column in columns.items()}
    load_json_lines(connection, path, kinds, "json_lines", report, name=name)
    counts = connection.execute(f"SELECT {', '.join(f'count({identifier(key)})' for key in kinds)} FROM json_lines")
    found = [key for key, count in zip(kinds, counts.fetchall()[0], strict=True) if count]
    if len(found) < len(kinds):
        check_columns(name, columns, list(dict.fromkeys([*found, *_first_keys(path)])))
    fields = (f'{identifier(key)} AS "{role}"' for role, key in columns.items())
    connection.execute(f"CREATE TEMP VIEW json_rows AS SELECT line, {', '.join(fields)} FROM json_lines")
    yield "json_rows", _JSON_NAMES
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
    connection: duckdb.DuckDBPyConnection, name: str, path: Path, columns: Mapping[str, str], report: RowReport
) -> Iterator[tuple[str, str]]:
    rows = ParquetRows(name, path, columns, report)
    connection.register("parquet_table", pa.RecordBatchReader.from_batches(rows.schema, rows.batches()))
    fields = ", ".join(f'CAST("{role}" AS VARCHAR{"[]" if role in rows.lists else ""}) AS "{role}"' for role in columns)
    connection.execute(f"CREATE TEMP VIEW parquet_rows AS SELECT line, {fields} FROM parquet_table")
    try:
        yield "parquet_rows", "category" if rows.lists else _SPLIT
    except duckdb.Error:
        rows.finish()  # DuckDB wraps what its reader raises
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

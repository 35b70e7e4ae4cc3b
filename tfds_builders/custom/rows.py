"""Opens a file of any supported kind as rows of text for DuckDB, with where each row stands."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb
import pyarrow as pa

from tfds_builders.custom.csv_rows import CsvRows, check_columns
from tfds_builders.json_lines import load_json_lines
from tfds_builders.lines import read_lines
from tfds_builders.malformed import MalformedSourceError, RowReport

SPACES = "E' \\t\\r\\n'"
"""SQL for the characters that are cut off both ends of a field."""

_TRIMMED = f'trim("{{role}}", {SPACES}) AS "{{role}}"'
_NAMES = (
    f"list_filter(list_transform({{names}}, lambda name: trim(name, {SPACES})), lambda name: name <> '') AS category"
)
_JSON_NAMES = """
CASE WHEN category[1] = '[' AND json_valid(category) THEN from_json(category, '["VARCHAR"]') ELSE {split} END
"""
_ROWS_FOR_KEYS = 100
"""How many JSON lines are looked at for the keys that there are."""


def literal(text: str) -> str:
    """SQL for a piece of text."""
    return "'" + text.replace("'", "''") + "'"


def order_of(connection: duckdb.DuckDBPyConnection, column: str, rows: str) -> str:
    """SQL for a column of ids that sorts as numbers where all ids in `rows` are whole numbers, else as text."""
    ((whole,),) = connection.execute(
        f"SELECT bool_and(CAST(try_cast({column} AS BIGINT) AS VARCHAR) IS NOT DISTINCT FROM {column}) FROM {rows}"
    ).fetchall()
    return f"try_cast({column} AS BIGINT)" if whole else column


def _identifier(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


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
    if not path.is_file():
        raise MalformedSourceError(f"{path} does not exist or is no file.")
    endings = path.name.lower().removesuffix(".gz").rsplit(".", 1)
    opener = _OPENERS.get(endings[-1])
    if opener is None:
        raise MalformedSourceError(
            f"{path} is of no known kind: expected a name that ends in .{', .'.join(_OPENERS)}; "
            "text may be gzipped (.csv.gz)."
        )
    with opener(connection, name, path, columns, report) as (relation, categories):
        names = categories.format(split=f"string_split(category, {literal(category_separator)})")
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
    yield "csv_rows", "{split}"
    connection.unregister("csv_rows")
    rows.finish()


@contextlib.contextmanager
def _open_json(
    connection: duckdb.DuckDBPyConnection, name: str, path: Path, columns: Mapping[str, str], report: RowReport
) -> Iterator[tuple[str, str]]:
    keys = list(dict.fromkeys(columns.values()))
    load_json_lines(connection, path, dict.fromkeys(keys, "VARCHAR"), "json_lines", report, name=name)
    counts = connection.execute(f"SELECT {', '.join(f'count({_identifier(key)})' for key in keys)} FROM json_lines")
    found = [key for key, count in zip(keys, counts.fetchall()[0], strict=True) if count]
    if len(found) < len(keys):
        check_columns(name, columns, list(dict.fromkeys([*found, *_first_keys(path)])))
    fields = (f'{_identifier(key)} AS "{role}"' for role, key in columns.items())
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
    scan = f"read_parquet({literal(str(path))}, binary_as_string=true, file_row_number=true)"
    try:
        described = connection.execute(f"DESCRIBE SELECT * EXCLUDE (file_row_number) FROM {scan}").fetchall()
        types = {column: kind for column, kind, *_ in described}
        check_columns(name, columns, list(types))
        ((report.rows[name],),) = connection.execute(f"SELECT count(*) FROM {scan}").fetchall()
        lists = [column for column, kind in types.items() if kind.endswith("[]")]
        fields = [
            f'CAST({_identifier(column)} AS VARCHAR{"[]" if column in lists else ""}) AS "{role}"'
            for role, column in columns.items()
        ]
        connection.execute(
            f"CREATE TEMP VIEW parquet_rows AS SELECT file_row_number + 1 AS line, {', '.join(fields)} FROM {scan}"
        )
        yield "parquet_rows", "category" if columns.get("category") in lists else "{split}"
    except duckdb.Error as error:
        raise MalformedSourceError(f"{name} cannot be read as Parquet ({error}): write it again.") from error
    connection.execute("DROP VIEW parquet_rows")


_OPENERS = {
    "csv": _open_csv,
    "tsv": _open_csv,
    "json": _open_json,
    "jsonl": _open_json,
    "ndjson": _open_json,
    "parquet": _open_parquet,
}

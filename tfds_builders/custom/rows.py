"""Opens a file of any supported kind as rows of text for DuckDB, with where each row stands."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb
import pyarrow as pa

from tfds_builders.custom.csv_rows import CsvRows, check_columns
from tfds_builders.malformed import MalformedSourceError, RowReport

SPACES = "E' \\t\\r\\n'"
"""SQL for the characters that are cut off both ends of a field."""


def literal(text: str) -> str:
    """SQL for a piece of text."""
    return "'" + text.replace("'", "''") + "'"


def order_of(connection: duckdb.DuckDBPyConnection, column: str, rows: str) -> str:
    """SQL for a column of ids that sorts as numbers where all ids in `rows` are whole numbers, else as text."""
    ((whole,),) = connection.execute(
        f"SELECT bool_and(CAST(try_cast({column} AS BIGINT) AS VARCHAR) IS NOT DISTINCT FROM {column}) FROM {rows}"
    ).fetchall()
    return f"try_cast({column} AS BIGINT)" if whole else column


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
    with opener(connection, name, path, columns, report) as (relation, lists):
        fields = [_field(role, role in lists, category_separator) for role in columns]
        connection.execute(f"CREATE TEMP VIEW source_rows AS SELECT line, {', '.join(fields)} FROM {relation}")
        yield
        connection.execute("DROP VIEW source_rows")


def _field(role: str, is_list: bool, category_separator: str) -> str:
    if role != "category":
        return f'trim("{role}", {SPACES}) AS "{role}"'
    names = "category" if is_list else f"string_split(category, {literal(category_separator)})"
    return (
        f"list_filter(list_transform({names}, lambda name: trim(name, {SPACES})), lambda name: name <> '') AS category"
    )


@contextlib.contextmanager
def _open_csv(connection, name: str, path: Path, columns: Mapping[str, str], report: RowReport):
    rows = CsvRows(name, path, columns, report)
    connection.register("csv_rows", pa.RecordBatchReader.from_batches(rows.schema, rows.batches()))
    yield "csv_rows", ()
    connection.unregister("csv_rows")
    rows.finish()


@contextlib.contextmanager
def _open_parquet(connection, name: str, path: Path, columns: Mapping[str, str], report: RowReport):
    scan = f"read_parquet({literal(str(path))}, binary_as_string=true, file_row_number=true)"
    try:
        described = connection.execute(f"DESCRIBE SELECT * EXCLUDE (file_row_number) FROM {scan}").fetchall()
        types = {column[0]: column[1] for column in described}
        check_columns(name, columns, list(types))
        lists = [role for role, column in columns.items() if role == "category" and types[column].endswith("[]")]
        fields = [
            f'''CAST("{column.replace('"', '""')}" AS VARCHAR{"[]" if role in lists else ""}) AS "{role}"'''
            for role, column in columns.items()
        ]
        connection.execute(
            f"CREATE TEMP VIEW parquet_rows AS SELECT file_row_number + 1 AS line, {', '.join(fields)} FROM {scan}"
        )
        ((report.rows[name],),) = connection.execute(f"SELECT count(*) FROM {scan}").fetchall()
        yield "parquet_rows", lists
    except duckdb.Error as error:
        raise MalformedSourceError(f"{name} cannot be read as Parquet ({error}): write it again.") from error
    connection.execute("DROP VIEW parquet_rows")


_OPENERS = {
    "csv": _open_csv,
    "tsv": _open_csv,
    "parquet": _open_parquet,
}

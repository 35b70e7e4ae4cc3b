"""Files of one JSON object a line, read into DuckDB out of core: every row keeps its line, none is lost in silence."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb
import pyarrow as pa

from tfds_builders.lines import LINES, read_lines
from tfds_builders.malformed import QUOTED_CHARACTERS, MalformedSourceError, RowReport
from tfds_builders.rejected import report_rejected


def load_json_lines(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    fields: Mapping[str, str],
    table: str,
    report: RowReport,
    name: str | None = None,
) -> None:
    """Creates `table` with the columns `line` and `fields` from a `.json` or `.json.gz` file.

    Values come as they are written, null where a key is missing: a number as text in a VARCHAR, for the caller to
    check; a list of strings in a VARCHAR[]. Lines that hold no JSON object, or are not UTF-8, go to `report` with
    their number and are left out. Blank lines hold no row.

    Args:
      connection: see `timelines.open_database`.
      fields: JSON key → VARCHAR or VARCHAR[].
      table: name of the table.
      report: receives the counts.
      name: of the file in messages and counts; the last part of its path by default.

    Raises:
      MalformedSourceError: the file has no rows, or is a truncated or damaged gzip file.
    """
    name = name or path.name
    shape = ", ".join(f'"{key}": "{kind}"' for key, kind in fields.items())
    columns = ", ".join(f'"row"."{key}"' for key in fields)
    failures: list[MalformedSourceError] = []
    connection.register("lines", pa.RecordBatchReader.from_batches(LINES, _remembering(path, failures)))
    # A line is parsed where it is an object; the guards stand in CASE, which looks at no branch it does not take.
    query = f"""
        CREATE TABLE {table} AS
        WITH stripped AS (
            SELECT line, utf8, rtrim(text, chr(13) || chr(10)) AS text FROM lines
        ),
        checked AS (
            SELECT line, text, CASE
                WHEN NOT utf8 THEN 'not utf-8'
                WHEN NOT json_valid(text) THEN 'not JSON'
                WHEN json_type(text) <> 'OBJECT' THEN 'not a JSON object'
            END AS broken
            FROM stripped WHERE trim(text) <> ''
        ),
        parsed AS (
            SELECT line, broken, text, CASE WHEN broken IS NULL THEN json_transform(text, '{{{shape}}}') END AS "row"
            FROM checked
        )
        SELECT line, {columns}, broken, CASE WHEN broken IS NOT NULL THEN text[:{QUOTED_CHARACTERS}] END AS found
        FROM parsed
    """
    try:
        connection.execute(query)
    except duckdb.Error:
        if failures:  # DuckDB wraps what its reader raises
            raise failures[0] from None
        raise
    finally:
        connection.unregister("lines")
    report.rows[name] = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    if not report.rows[name]:
        raise MalformedSourceError(f"{name} has no rows: expected a JSON object a line.")
    report_rejected(connection, f"(SELECT line, broken AS reason, found FROM {table})", name, report)
    connection.execute(f"DELETE FROM {table} WHERE broken IS NOT NULL")
    connection.execute(f"ALTER TABLE {table} DROP COLUMN broken; ALTER TABLE {table} DROP COLUMN found")


def _remembering(path: Path, failures: list[MalformedSourceError]) -> Iterator[pa.RecordBatch]:
    try:
        yield from read_lines(path)
    except MalformedSourceError as error:
        failures.append(error)
        raise

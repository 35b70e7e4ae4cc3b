"""Files of one JSON object a line, read into DuckDB out of core: every row keeps its line, none is lost in silence."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa

from user_llm.builders.lines import LINES, read_lines
from user_llm.builders.malformed import QUOTED_CHARACTERS, MalformedSourceError, RowReport
from user_llm.builders.rejected import report_rejected
from user_llm.builders.sql import identifier, literal


class Kind(NamedTuple):
    """What the values of a key may be, besides missing or null; SQL of a value's `{type}` in JSON and its `{text}`.

    Attributes:
      wrong: whether a value is of another kind.
      expected: the kind, in words.
      value: what becomes of it in the table.
    """

    wrong: str
    expected: str
    value: str


_NO_TEXT = "('OBJECT', 'ARRAY', 'BOOLEAN')"
_LIST_OF_OTHERS = (
    f"len(list_filter(from_json({{text}}, '[\"JSON\"]'), lambda part: coalesce(json_type(part), '') IN {_NO_TEXT})) > 0"
)

TEXT = Kind(f"{{type}} IN {_NO_TEXT}", "text or a number", "{text}")
"""Comes as it is written: a number as text, for the caller to check."""
ID = Kind(
    f"{{type}} IN {_NO_TEXT} "
    r"OR {type} NOT IN ('VARCHAR', 'NULL') AND NOT regexp_full_match({text}, '-?[0-9]+|-?[0-9]{{1,15}}\.0+')",
    "text or a whole number",
    r"CASE {type} WHEN 'DOUBLE' THEN regexp_replace({text}, '\.0+$', '') ELSE {text} END",
)
"""Comes as text; 7.0, as tables with gaps write 7, is "7"."""
LIST = Kind(
    f"CASE WHEN {{type}} = 'ARRAY' THEN {_LIST_OF_OTHERS} ELSE {{type}} <> 'NULL' END",
    "a list of text",
    "CASE {type} WHEN 'ARRAY' THEN from_json({text}, '[\"VARCHAR\"]') END",
)
"""Comes as VARCHAR[]."""
TEXT_OR_LIST = Kind(
    f"CASE WHEN {{type}} = 'ARRAY' THEN {_LIST_OF_OTHERS} ELSE {{type}} IN {_NO_TEXT} END",
    "text or a list of text",
    "CASE {type} WHEN 'ARRAY' THEN CAST({text} AS JSON) ELSE to_json({text}) END",
)
"""Comes as JSON."""


def load_json_lines(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    fields: Mapping[str, Kind],
    table: str,
    report: RowReport,
    name: str | None = None,
) -> None:
    """Creates `table` with the columns `line` and `fields` from a `.json` or `.json.gz` file.

    Lines that hold no JSON object, are not UTF-8, or have a key twice or a value of another kind go to `report` with
    their number and are left out. Blank lines hold no row.

    Args:
      connection: see `timelines.open_database`.
      path: the file.
      fields: JSON key → what its values may be, and come as.
      table: name of the table.
      report: receives the counts.
      name: of the file in messages and counts; the last part of its path by default.

    Raises:
      MalformedSourceError: the file has no rows, or none that is good; or see `read_lines`.
    """
    name = name or path.name
    failures: list[MalformedSourceError] = []
    connection.register("lines", pa.RecordBatchReader.from_batches(LINES, _remembering(path, name, failures)))
    try:
        connection.execute(_query(fields, table))
    except duckdb.Error:
        if failures:  # DuckDB wraps what its reader raises
            raise failures[0] from None
        raise
    finally:
        connection.unregister("lines")
    ((report.rows[name],),) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    if not report.rows[name]:
        raise MalformedSourceError(f"{name} has no rows: expected a JSON object a line.")
    report_rejected(connection, f"(SELECT line, broken AS reason, found FROM {table})", name, report)
    _check_form(connection, table, name, report)
    connection.execute(f"DELETE FROM {table} WHERE broken IS NOT NULL")
    connection.execute(f"ALTER TABLE {table} DROP COLUMN broken; ALTER TABLE {table} DROP COLUMN found")


def _query(fields: Mapping[str, Kind], table: str) -> str:
    paths = ", ".join(literal("/" + key.replace("~", "~0").replace("/", "~1")) for key in fields)  # as JSON Pointer
    keys = ", ".join(map(literal, fields))
    places = {key: {"type": f"types[{place}]", "text": f"texts[{place}]"} for place, key in enumerate(fields, start=1)}
    wrong = " ".join(
        f"WHEN {kind.wrong.format(**places[key])} THEN {literal(f'{key} is not {kind.expected}')}"
        for key, kind in fields.items()
    )
    columns = ", ".join(f"{kind.value.format(**places[key])} AS {identifier(key)}" for key, kind in fields.items())
    # A line is parsed where it is an object; the guards stand in CASE, which looks at no branch it does not take. All
    # keys are taken at once, as every function parses the line anew.
    return f"""
        CREATE TABLE {table} AS
        WITH stripped AS (
            SELECT line, utf8, rtrim(text, chr(13) || chr(10)) AS text FROM lines
        ),
        checked AS (
            SELECT line, text, CASE
                WHEN NOT utf8 THEN 'not utf-8'
                WHEN NOT json_valid(text) THEN 'not JSON'
                WHEN json_type(text) <> 'OBJECT' THEN 'not a JSON object'
            END AS unreadable
            FROM stripped WHERE trim(text) <> ''
        ),
        parsed AS (
            SELECT
                line, text, unreadable,
                CASE WHEN unreadable IS NULL THEN json_type(text, [{paths}]) END AS types,
                CASE WHEN unreadable IS NULL THEN json_extract_string(text, [{paths}]) END AS texts,
                CASE WHEN unreadable IS NULL
                    THEN len(list_filter(json_keys(text), lambda key: key IN ({keys}))) END AS num_keys
            FROM checked
        ),
        typed AS (
            SELECT line, text, types, texts, CASE
                WHEN unreadable IS NOT NULL THEN unreadable
                WHEN num_keys > len(list_filter(types, lambda kind: kind IS NOT NULL)) THEN 'a key stands twice'
                {wrong}
            END AS broken
            FROM parsed
        )
        SELECT line, {columns}, broken, CASE WHEN broken IS NOT NULL THEN text[:{QUOTED_CHARACTERS}] END AS found
        FROM typed
    """


def _check_form(connection: duckdb.DuckDBPyConnection, table: str, name: str, report: RowReport) -> None:
    """Raises where the file is JSON but not one object a line, or has no row that is good."""
    ((broken, found),) = connection.execute(f"SELECT broken, found FROM {table} ORDER BY line LIMIT 1").fetchall()
    start = "" if broken is None else found.strip()
    if start.startswith("[") or start == "{":
        raise MalformedSourceError(
            f"{name} is a JSON {'array' if start != '{' else 'object over several lines'}: expected one object a "
            "line, as jq -c '.[]' FILE writes those of an array, and jq -c . FILE those that are spread."
        )
    if report.rejected(name) == report.rows[name]:
        raise MalformedSourceError(f"{name} holds no row that can be read.\n{report.text()}")


def _remembering(path: Path, name: str, failures: list[MalformedSourceError]) -> Iterator[pa.RecordBatch]:
    try:
        yield from read_lines(path, name)
    except MalformedSourceError as error:
        failures.append(error)
        raise

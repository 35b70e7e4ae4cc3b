"""Files of one JSON object a line, read into DuckDB out of core: every row keeps its line, none is lost in silence."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa

from user_llm.builders.lines import LINES, read_lines
from user_llm.builders.malformed import QUOTED_CHARACTERS, MalformedSourceError, RowReport
from user_llm.builders.rejected import report_rejected
from user_llm.builders.sql import identifier, literal
from user_llm.builders.text_file import WHOLE, Piece


class Kind(NamedTuple):
    """What the values of a key may be, besides missing or null; in SQL.

    Attributes:
      taken: the type that DuckDB takes a value as: `VARCHAR`, the text of whatever it is, or `JSON`.
      type: of a value in JSON, from the `{value}` that was taken, and the `{path}` of its key in `text`, the line; null
        where it makes no difference.
      wrong: whether a `{value}` of a `{type}` is of another kind.
      expected: the kind, in words.
      column: what becomes of it in the table.
    """

    taken: str
    type: str
    wrong: str
    expected: str
    column: str


def _type_where(pattern: str) -> str:
    """SQL of the type of a value whose text matches: all others are text, or numbers that are as good."""
    return f"CASE WHEN regexp_matches({{value}}, '^(?:{pattern})') THEN json_type(text, {{path}}) END"


_NO_TEXT = "('OBJECT', 'ARRAY', 'BOOLEAN')"
_LOOKS_LIKE_NO_TEXT = r"[\[{{]|true$|false$"
_LOOKS_LIKE_A_POWER = r"-?[0-9.]+[eE][-+0-9]+$|(?i:-?nan|-?inf|-?infinity)$"
_LOOKS_LIKE_A_FRACTION = r"-?[0-9]+\.[0-9]+$"
_WRITTEN = "CASE {type} WHEN 'DOUBLE' THEN json_extract_string(text, {path}) ELSE {value} END"
"""The text of a number in JSON's spelling: DuckDB's has another for powers."""
_PARTS = "from_json({value}, '[\"JSON\"]')"
_LIST_OF_OTHERS = f"len(list_filter({_PARTS}, lambda part: coalesce(json_type(part), '') IN {_NO_TEXT})) > 0"

TEXT = Kind(
    "VARCHAR",
    _type_where(f"{_LOOKS_LIKE_NO_TEXT}|{_LOOKS_LIKE_A_POWER}"),
    f"{{type}} IN {_NO_TEXT}",
    "text or a number",
    _WRITTEN,
)
"""Comes as it is written: a number as text, for the caller to check."""
ID = Kind(
    "VARCHAR",
    _type_where(f"{_LOOKS_LIKE_NO_TEXT}|{_LOOKS_LIKE_A_POWER}|{_LOOKS_LIKE_A_FRACTION}"),
    r"{type} <> 'VARCHAR' AND NOT regexp_full_match({value}, '-?[0-9]+|-?[0-9]{{1,15}}\.0+')",
    "text or a whole number",
    r"CASE {type} WHEN 'DOUBLE' THEN regexp_replace({value}, '\.0+$', '') ELSE {value} END",
)
"""Comes as text; 7.0, as tables with gaps write 7, is "7"."""
LIST = Kind(
    "JSON",
    "json_type({value})",
    f"CASE WHEN {{type}} = 'ARRAY' THEN {_LIST_OF_OTHERS} ELSE {{type}} IS NOT NULL END",
    "a list of text",
    "CASE {type} WHEN 'ARRAY' THEN from_json({value}, '[\"VARCHAR\"]') END",
)
"""Comes as VARCHAR[]."""
TEXT_OR_LIST = Kind(
    "JSON",
    "json_type({value})",
    f"CASE WHEN {{type}} = 'ARRAY' THEN {_LIST_OF_OTHERS} ELSE {{type}} IN {_NO_TEXT} END",
    "text or a list of text",
    "{value}",
)
"""Comes as JSON."""


class Form(NamedTuple):
    """What a file of JSON lines, or a piece of it, shows of its form.

    Attributes:
      first: of its first row, what is wrong with it and the start of what stands there, both null where it is good;
        None without rows.
      keys: those of the asked ones that have a value in any row.
      good: whether any row can be read.
    """

    first: tuple[str | None, str | None] | None = None
    keys: frozenset[str] = frozenset()
    good: bool = False

    def then(self, other: "Form") -> "Form":
        """That of this piece and the next one together."""
        return Form(self.first or other.first, self.keys | other.keys, self.good or other.good)


def read_json_lines(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    fields: Mapping[str, Kind],
    table: str,
    report: RowReport,
    name: str,
    piece: Piece = WHOLE,
) -> Form:
    """Creates the temporary `table` with the columns `line` and `fields` from a `.json` or `.json.gz` file.

    Lines that hold no JSON object, are not UTF-8, or have a key twice or a value of another kind go to `report` with
    their number and are left out. Blank lines hold no row.

    Args:
      connection: see `timelines.open_database`.
      path: the file.
      fields: JSON key → what its values may be, and come as.
      table: name of the table.
      report: receives the counts.
      name: of the file in messages and counts.
      piece: what to read of it.

    Returns: what `check_json_lines` takes, when all pieces are read.

    Raises:
      MalformedSourceError: see `read_lines`.
    """
    failures: list[MalformedSourceError] = []
    lines = _remembering(read_lines(path, name, piece), failures)
    connection.register("lines", pa.RecordBatchReader.from_batches(LINES, lines))
    try:
        connection.execute(_query(fields, table))
    except duckdb.Error:
        if failures:  # DuckDB wraps what its reader raises
            raise failures[0] from None
        raise
    finally:
        connection.unregister("lines")
    ((report.rows[name],),) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    report_rejected(connection, f"(SELECT line, broken AS reason, found FROM {table})", name, report)
    first = connection.execute(f"SELECT broken, found FROM {table} ORDER BY line LIMIT 1").fetchone()
    connection.execute(f"DELETE FROM {table} WHERE broken IS NOT NULL")
    connection.execute(f"ALTER TABLE {table} DROP COLUMN broken; ALTER TABLE {table} DROP COLUMN found")
    counts = ", ".join(f"count({identifier(key)})" for key in fields)
    ((good, *of_keys),) = connection.execute(f"SELECT count(*), {counts} FROM {table}").fetchall()
    return Form(first, frozenset(key for key, count in zip(fields, of_keys, strict=True) if count), good > 0)


def check_json_lines(name: str, form: Form, report: RowReport) -> None:
    """Checks a file that was read whole.

    Raises:
      MalformedSourceError: it has no rows, or none that is good, or is JSON but not one object a line.
    """
    if form.first is None:
        raise MalformedSourceError(f"{name} has no rows: expected a JSON object a line.")
    broken, found = form.first
    start = (found or "").strip() if broken else ""
    if start.startswith("[") or start == "{":
        raise MalformedSourceError(
            f"{name} is a JSON {'array' if start != '{' else 'object over several lines'}: expected one object a "
            "line, as jq -c '.[]' FILE writes those of an array, and jq -c . FILE those that are spread."
        )
    if not form.good:
        raise MalformedSourceError(f"{name} holds no row that can be read.\n{report.text()}")


def _query(fields: Mapping[str, Kind], table: str) -> str:
    shape = literal(json.dumps({key: kind.taken for key, kind in fields.items()}, ensure_ascii=False))
    keys = ", ".join(map(literal, fields))
    paths = {key: literal("/" + key.replace("~", "~0").replace("/", "~1")) for key in fields}  # as JSON Pointer
    names = {key: {"value": f"value{place}", "type": f"type{place}"} for place, key in enumerate(fields)}
    values = ", ".join(f"struct_extract(fields, {literal(key)}) AS {names[key]['value']}" for key in fields)
    types = ", ".join(
        f"{kind.type.format(**names[key], path=paths[key])} AS {names[key]['type']}" for key, kind in fields.items()
    )
    num_values = " + ".join(f"CAST({name['value']} IS NOT NULL AS INTEGER)" for name in names.values())
    wrong = " ".join(
        f"WHEN {kind.wrong.format(**names[key])} THEN {literal(f'{key} is not {kind.expected}')}"
        for key, kind in fields.items()
    )
    columns = ", ".join(
        f"{kind.column.format(**names[key], path=paths[key])} AS {identifier(key)}" for key, kind in fields.items()
    )
    # Every function of `text` parses the line anew. Two are asked of each: its values and its keys. All others stand in
    # CASE, which looks at no branch it does not take. Spaces of any kind (Zs) are a blank line.
    return f"""
        CREATE TEMP TABLE {table} AS
        WITH parsed AS (
            SELECT line, text, utf8, TRY(json_transform(text, {shape})) AS fields
            FROM lines WHERE starts_with(text, '{{') OR NOT regexp_full_match(text, '\\p{{Zs}}*[\\r\\n]*')
        ),
        split AS (
            SELECT
                *, {values},
                CASE WHEN fields IS NOT NULL
                    THEN list_filter(json_keys(text), lambda key: key IN ({keys})) END AS keys
            FROM parsed
        ),
        typed AS (
            SELECT *, {types}, CASE
                WHEN NOT utf8 THEN 'not utf-8'
                WHEN fields IS NULL THEN CASE WHEN json_valid(text) THEN 'not a JSON object' ELSE 'not JSON' END
                WHEN len(keys) = 0 AND json_type(text) <> 'OBJECT' THEN 'not a JSON object'
                WHEN len(keys) > {num_values} AND len(keys) > list_unique(keys) THEN 'a key stands twice'
            END AS unreadable
            FROM split
        ),
        checked AS (
            SELECT *, CASE
                WHEN unreadable IS NOT NULL THEN unreadable
                {wrong}
            END AS broken
            FROM typed
        )
        SELECT
            line, {columns}, broken,
            CASE WHEN broken IS NOT NULL THEN rtrim(text, chr(13) || chr(10))[:{QUOTED_CHARACTERS}] END AS found
        FROM checked
    """


def _remembering(lines: Iterator[pa.RecordBatch], failures: list[MalformedSourceError]) -> Iterator[pa.RecordBatch]:
    try:
        yield from lines
    except MalformedSourceError as error:
        failures.append(error)
        raise

"""Text as people wrote it, from text as web pages hold it: SQL that takes tags, entities and stray spaces away."""

import html

import duckdb
import pyarrow as pa
from duckdb.func import PythonUDFType

from user_llm.builders.sql import CONTROL_CHARACTERS

_TAG = "</?[a-zA-Z!][^<>]*>"
"""An HTML tag. A "<3" is none."""

_UNCLEAN = rf"[&<]|{CONTROL_CHARACTERS}|^\s|\s\s|\s$"
"""What a text may hold that is undone, dropped or made another space; each function adds the spaces it changes."""


def add_functions(connection: duckdb.DuckDBPyConnection) -> None:
    """Gives `connection` the SQL functions `one_line(text)` and `many_lines(text)`.

    Both undo HTML entities, drop tags and the spaces around, and make control characters spaces; `many_lines` keeps
    line breaks, `one_line` makes them spaces. Null becomes "".
    """

    def unescape(texts: pa.ChunkedArray) -> pa.Array:
        return pa.array([text if text is None else html.unescape(text) for text in texts.to_pylist()], pa.string())

    connection.create_function("unescape_entities", unescape, ["VARCHAR"], "VARCHAR", type=PythonUDFType.ARROW)
    connection.execute(f"""
        CREATE TEMP MACRO without_html(text) AS regexp_replace(
            CASE WHEN contains(text, '&') THEN unescape_entities(text) ELSE text END,
            '{_TAG}|{CONTROL_CHARACTERS}', ' ', 'g'
        )
    """)
    # Most texts are clean, and replacing costs ten times as much as looking. `trim` takes all spaces of Unicode (Zs).
    connection.execute(rf"""
        CREATE TEMP MACRO one_line(text) AS coalesce(
            CASE WHEN regexp_matches(text, '{_UNCLEAN}|[^\S ]|^\p{{Zs}}|\p{{Zs}}$')
                THEN trim(regexp_replace(without_html(text), '\s+', ' ', 'g')) ELSE text
            END,
            ''
        )
    """)
    connection.execute(rf"""
        CREATE TEMP MACRO many_lines(text) AS coalesce(
            CASE WHEN regexp_matches(text, '{_UNCLEAN}|[^\S\n ]')
                THEN trim(
                    regexp_replace(
                        regexp_replace(without_html(text), '[^\S\n]+', ' ', 'g'), ' ?\n\s*', chr(10), 'g'
                    ),
                    E' \n'
                ) ELSE text
            END,
            ''
        )
    """)

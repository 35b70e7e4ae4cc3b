"""Reads the metadata of the reviewed products into the catalogue, by the rules of README.md."""

import ast
import logging
from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa

from user_llm.builders.catalogue import NO_CATEGORY, catalogue_lists
from user_llm.builders.json_lines import ID, LIST, TEXT, Form, check_json_lines, read_json_lines
from user_llm.builders.lines import read_lines
from user_llm.builders.malformed import QUOTED_CHARACTERS, MalformedSourceError, RowReport
from user_llm.builders.pieces import Source
from user_llm.builders.sql import has_control
from user_llm.builders.text_file import WHOLE, Piece

_LONGEST_CATEGORY = 60
"""Characters. What is longer in a category path of 2018 is text of the product's page."""

_METADATA = pa.schema(
    {"line": pa.int64(), "asin": pa.string(), "title": pa.string(), "category": pa.list_(pa.string())}
)

_NO_PRODUCT = "not a Python literal of text, with a list of lists as categories"

logger = logging.getLogger(__name__)


def create_catalogue(
    connection: duckdb.DuckDBPyConnection, source: Source | None, *, level: int, report: RowReport
) -> dict[str, Any]:
    """Creates `products` (asin, item) of every asin in `reviews`, and returns the catalogue's metadata.

    Items are numbered from 1 in the order of their asins. Products that nobody has reviewed are left out: they can be
    neither history nor answer.

    Args:
      connection: one that has `reviews`, `text.add_functions`, and `metadata` where there is any.
      source: the metadata file; None: there is none, and every product falls under the rule for that.
      level: of the category path, from 0; a path that ends earlier gives its last.
      report: receives the counts.
    """
    if source is None:
        logger.warning("There is no metadata file: titles are asins, and there are no categories")
        connection.register("nothing", _METADATA.empty_table())
        connection.execute("CREATE TABLE metadata AS SELECT * FROM nothing")
        connection.unregister("nothing")
    connection.execute(f"""
        CREATE TABLE described AS
        WITH first_rows AS (
            SELECT * FROM metadata QUALIFY row_number() OVER (PARTITION BY asin ORDER BY line) = 1
        ),
        products AS (SELECT DISTINCT asin FROM reviews),
        joined AS (
            SELECT
                products.asin, line IS NOT NULL AS found,
                -- 2018 has products whose title is a script of their page.
                CASE WHEN contains(title, 'getTime') THEN '' ELSE one_line(title) END AS title,
                coalesce({has_control("title")}, false) AS controlled,
                list_transform(category, lambda name: one_line(name)) AS path
            FROM products LEFT JOIN first_rows USING (asin)
        ),
        cut AS (
            SELECT *, coalesce(list_position(list_transform(
                path, lambda name: name = '' OR length(name) > {_LONGEST_CATEGORY}
            ), true) - 1, len(path), 0) AS usable
            FROM joined
        )
        SELECT
            asin, found, title, controlled,
            coalesce(path[least({level} + 1, usable)], '{NO_CATEGORY}') AS category,
            row_number() OVER (ORDER BY asin) AS item
        FROM cut
    """)
    connection.execute("CREATE TABLE products AS SELECT asin, CAST(item AS INTEGER) AS item FROM described")
    _count_rules(connection, source.name if source else "reviews", report)
    rows = connection.execute("SELECT asin, title, category FROM described ORDER BY item").fetchall()
    connection.execute("DROP TABLE described; DROP TABLE metadata")
    return catalogue_lists(
        raw_ids=[asin for asin, *_ in rows],
        titles=[title or asin for asin, title, _ in rows],
        categories=[[category] if source else [] for *_, category in rows],
    )


def _count_rules(connection: duckdb.DuckDBPyConnection, file: str, report: RowReport) -> None:
    ((rows, distinct),) = connection.execute("SELECT count(*), count(DISTINCT asin) FROM metadata").fetchall()
    ((unused,),) = connection.execute(
        "SELECT count(DISTINCT asin) FROM metadata WHERE asin NOT IN (SELECT asin FROM products)"
    ).fetchall()
    ((unknown, controlled, untitled, uncategorised),) = connection.execute(
        f"""
        SELECT
            count(*) FILTER (NOT found), count(*) FILTER (controlled),
            count(*) FILTER (found AND coalesce(title, '') = ''),
            count(*) FILTER (found AND category = '{NO_CATEGORY}')
        FROM described
        """
    ).fetchall()
    report.rows.setdefault(file, 0)
    report.apply_rule(file, "a second row of the same product", rows - distinct, dropped=True)
    report.apply_rule(file, "a product that nobody has reviewed", unused, dropped=True)
    report.apply_rule(file, "a reviewed product without a row: its asin is its title", unknown, dropped=False)
    report.apply_rule(file, "control characters in a title are taken as spaces", controlled, dropped=False)
    report.apply_rule(file, "a product without a title: its asin is its title", untitled, dropped=False)
    report.apply_rule(file, f"a product without a category: it gets {NO_CATEGORY!r}", uncategorised, dropped=False)
    if unknown:
        logger.warning("%d reviewed products have no row in %s: their asins stand for titles", unknown, file)


def load_metadata(
    connection: duckdb.DuckDBPyConnection, source: Source, *, literal: bool, report: RowReport, piece: Piece = WHOLE
) -> Form:
    """Creates `metadata` (line, asin, title, category) with a category path a row, and an asin in each.

    Args:
      connection: a database.
      source: the metadata file.
      literal: whether rows are Python literals (2014) instead of JSON (2018).
      report: receives the counts.
      piece: what to read of the file.

    Raises:
      MalformedSourceError: the file is a damaged gzip file.
    """
    form, name = Form(), source.name
    if literal:
        literals = pa.RecordBatchReader.from_batches(_METADATA, _read_literals(source, report, piece))
        connection.register("literals", literals)
        connection.execute("CREATE TABLE metadata AS SELECT * FROM literals")
        connection.unregister("literals")
    else:
        fields = {"asin": ID, "title": TEXT, "category": LIST}
        form = read_json_lines(connection, source.path, fields, "metadata", report, name, piece)
    nameless = connection.execute(
        "SELECT line, coalesce(title, '') FROM metadata WHERE coalesce(asin, '') = '' ORDER BY line"
    ).fetchall()
    if nameless:
        report.reject(name, "asin is missing", nameless)
        connection.execute("DELETE FROM metadata WHERE coalesce(asin, '') = ''")
    return form


def check_metadata(source: Source, form: Form, *, literal: bool, report: RowReport) -> None:
    """Checks a metadata file that was read whole.

    Raises:
      MalformedSourceError: it has no rows, or see `check_json_lines`.
    """
    if not literal:
        check_json_lines(source.name, form, report)
    elif not report.rows[source.name]:
        raise MalformedSourceError(f"{source.name} has no rows: expected a Python literal a line.")


def _read_literals(source: Source, report: RowReport, piece: Piece) -> Iterator[pa.RecordBatch]:
    """The 2014 rows, which are Python dicts: read as literals, never evaluated. Of several paths the first is taken."""
    name = source.name
    report.rows[name] = 0
    for batch in read_lines(source.path, name, piece):
        rows = []
        for line, text in zip(batch["line"].to_pylist(), batch["text"].to_pylist(), strict=True):
            if not text.strip():
                continue
            report.rows[name] += 1
            try:
                row = ast.literal_eval(text.strip())
                (names, *_) = row.get("categories") or [[]]
                if type(names) is not list:
                    raise TypeError(names)
                rows.append(
                    {
                        "line": line,
                        "asin": _text(row.get("asin")),
                        "title": _text(row.get("title")),
                        "category": [_text(part) or "" for part in names],
                    }
                )
            except (ValueError, SyntaxError, AttributeError, TypeError, IndexError, MemoryError, RecursionError):
                report.reject(name, _NO_PRODUCT, [(line, text.strip()[:QUOTED_CHARACTERS])])
        yield pa.RecordBatch.from_pylist(rows, schema=_METADATA)


def _text(value: object) -> str | None:
    if type(value) not in (type(None), str, int, float):
        raise TypeError(value)
    return None if value is None else str(value)

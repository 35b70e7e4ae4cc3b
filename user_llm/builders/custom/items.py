"""The items of a custom dataset: from files of their own, from the events, or both."""

import logging
from typing import Any

import duckdb

from user_llm.builders.catalogue import NO_CATEGORY, catalogue_lists
from user_llm.builders.custom.config import OF_ITEMS, CustomConfig
from user_llm.builders.custom.events import rows_before
from user_llm.builders.custom.rows import Rows, field_of, open_rows, order_of
from user_llm.builders.json_lines import Form
from user_llm.builders.malformed import RowReport
from user_llm.builders.pieces import Source
from user_llm.builders.rejected import report_rejected
from user_llm.builders.sql import has_control, literal
from user_llm.builders.text_file import WHOLE, Piece

logger = logging.getLogger(__name__)

_WITHOUT = {
    "title": "no title for the item: its id stands for it",
    "category": f"no category for the item: it is in {NO_CATEGORY}",
}

_CREATE_ITEM_ROWS = """
CREATE TABLE IF NOT EXISTS item_rows (
    file VARCHAR, position BIGINT, line BIGINT, item VARCHAR, title VARCHAR, category VARCHAR[],
    reason VARCHAR, found VARCHAR
)
"""

_INSERT_ITEM_ROWS = """
INSERT INTO item_rows BY NAME
SELECT
    $file AS file, $before + line AS position, *,
    CASE
        WHEN coalesce(item, '') = '' THEN {item} || ' is empty'
        WHEN {controlled} THEN 'a control character in item, title or category'
    END AS reason,
    CASE WHEN reason IS NOT NULL THEN {item} || '=' || coalesce(item, '') END AS found
FROM (SELECT {fields} FROM source_rows)
"""

_REPEATED = """
FROM item_rows JOIN (SELECT item, min(position) AS first FROM item_rows GROUP BY item) USING (item)
WHERE position > first
"""

# First come the items that have rows of their own, in the order of these; then those that only events name.
_CREATE_CATALOGUE = """
CREATE TABLE catalogue AS
SELECT
    raw_id, CAST(row_number() OVER (ORDER BY position NULLS LAST, {order}) AS INTEGER) AS item,
    position IS NOT NULL AS listed
FROM (
    SELECT item AS raw_id, position FROM item_rows
    UNION ALL
    SELECT DISTINCT item, NULL FROM (FROM interactions ANTI JOIN item_rows USING (item)) WHERE reason IS NULL
)
"""

_CREATE_FIRST = """
CREATE TABLE first_{role} AS
SELECT item AS raw_id, arg_min({role}, position) AS {role}
FROM {rows} WHERE reason IS NULL AND len({role}) > 0 GROUP BY item
"""

_COUNT_FIRST = """
SELECT
    file,
    count(*) FILTER (len({rows}.{role}) > 0 AND {rows}.{role} <> first_{role}.{role}),
    count(*) FILTER (first_{role}.{role} IS NULL)
FROM {rows} LEFT JOIN first_{role} ON raw_id = item
WHERE reason IS NULL GROUP BY file ORDER BY file
"""

_COUNT_UNLISTED = """
SELECT file, count(*) FILTER (NOT listed)
FROM interactions JOIN catalogue ON raw_id = interactions.item
WHERE reason IS NULL GROUP BY file ORDER BY file
"""


def read_items(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    config: CustomConfig,
    report: RowReport,
    piece: Piece = WHOLE,
) -> Form:
    """Adds to `item_rows`, one row an item; malformed ones go to `report` and are left out.

    Raises:
      MalformedSourceError: see `open_rows`.
    """
    connection.execute(_CREATE_ITEM_ROWS)
    before, name = rows_before(connection, "item_rows", piece), source.name
    rows = Rows(name, source.path, config.item_columns, config.category_separator, piece)
    with open_rows(connection, rows, report) as form:
        fields = (field_of(role, role in config.item_columns) for role in ("item", *OF_ITEMS))
        query = _INSERT_ITEM_ROWS.format(
            item=literal(config.item_columns["item"]),
            controlled=has_control("concat(item, title, array_to_string(category, ''))"),
            fields=", ".join(["line", *fields]),
        )
        connection.execute(query, {"file": name, "before": before})
    report_rejected(connection, f"(FROM item_rows WHERE file = {literal(name)})", name, report)
    connection.execute("DELETE FROM item_rows WHERE reason IS NOT NULL")
    return form


def create_catalogue(connection: duckdb.DuckDBPyConnection, config: CustomConfig, report: RowReport) -> dict[str, Any]:
    """Creates `catalogue` (raw_id, item, listed), and `first_title` and `first_category` (raw_id and that).

    They are made of `item_rows`, of which repeated items count as a rule, and of `interactions`, or of `FIRST_ROWS`
    of them. Item ids follow the files of items; those that only events name come after, as numbers where all ids are
    whole numbers, else as text. An item's title and categories are the first that are given.

    Returns: the catalogue's metadata.
    """
    connection.execute(_CREATE_ITEM_ROWS)
    for name, count in connection.execute(f"SELECT file, count(*) {_REPEATED} GROUP BY file ORDER BY file").fetchall():
        report.apply_rule(name, "an item of an earlier row", count, dropped=True)
    connection.execute(f"DELETE FROM item_rows WHERE position IN (SELECT position {_REPEATED})")
    order = order_of(connection, "item", "interactions WHERE reason IS NULL").replace("item", "raw_id")
    connection.execute(_CREATE_CATALOGUE.format(order=order))
    if config.items:
        _say_if_none_is_listed(connection)
    for role in OF_ITEMS:
        rows = "item_rows" if role in config.item_columns else "interactions"
        connection.execute(_CREATE_FIRST.format(role=role, rows=rows))
        if role in config.item_columns:
            _count_first(connection, role, rows, report)
    described = connection.execute(
        """
        SELECT raw_id, coalesce(title, raw_id), coalesce(category, [])
        FROM catalogue LEFT JOIN first_title USING (raw_id) LEFT JOIN first_category USING (raw_id) ORDER BY item
        """
    ).fetchall()
    raw_ids = [raw_id for raw_id, _, _ in described]
    # A quoted title may span lines.
    titles = [" ".join(map(str.strip, title.splitlines())) for _, title, _ in described]
    none = [NO_CATEGORY] if "category" in {*config.columns, *config.item_columns} else []
    categories = [names or none for *_, names in described]
    return catalogue_lists(raw_ids, titles, categories)


def count_rules_of_events(connection: duckdb.DuckDBPyConnection, config: CustomConfig, report: RowReport) -> None:
    """Counts the rows of `interactions` whose item is in no file of items, or has another first title or category."""
    if config.items:
        for name, count in connection.execute(_COUNT_UNLISTED).fetchall():
            rule = "the item is in no file of items: it comes after those that are"
            report.apply_rule(name, rule, count, dropped=False)
    for role in OF_ITEMS:
        if role in config.columns:
            _count_first(connection, role, "interactions", report)


def _say_if_none_is_listed(connection: duckdb.DuckDBPyConnection) -> None:
    ((described, in_events, example),) = connection.execute(
        """
        SELECT count(*), count(*) FILTER (item IN (SELECT item FROM interactions WHERE reason IS NULL)), min(item)
        FROM item_rows
        """
    ).fetchall()
    if not in_events:
        ((of_events,),) = connection.execute("SELECT min(item) FROM interactions WHERE reason IS NULL").fetchall()
        logger.warning(
            "None of the %d items that files of items describe is in the events. Are both the same ids? "
            "The files of items have %r, the events %r.",
            *(described, example, of_events),
        )


def _count_first(connection: duckdb.DuckDBPyConnection, role: str, rows: str, report: RowReport) -> None:
    for name, differing, without in connection.execute(_COUNT_FIRST.format(role=role, rows=rows)).fetchall():
        report.apply_rule(name, f"another {role} than the item's first, which stays", differing, dropped=False)
        report.apply_rule(name, _WITHOUT[role], without, dropped=False)

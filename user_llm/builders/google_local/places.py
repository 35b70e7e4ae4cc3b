"""Reads the metadata of the places into the catalogue that every timeline refers to."""

from typing import Any

import duckdb

from user_llm.builders.catalogue import NO_CATEGORY, catalogue_lists
from user_llm.builders.json_lines import ID, LIST, TEXT, Form, read_json_lines
from user_llm.builders.malformed import RowReport
from user_llm.builders.pieces import Source
from user_llm.builders.rejected import report_rejected
from user_llm.builders.sql import CONTROL_CHARACTERS, has_control
from user_llm.builders.text_file import WHOLE, Piece

_FIELDS = {"gmap_id": ID, "name": TEXT, "category": LIST, "state": TEXT}

_CREATE_PLACES = f"""
CREATE TABLE places AS
SELECT
    line, gmap_id, trim(regexp_replace(name, '(\\s|{CONTROL_CHARACTERS})+', ' ', 'g')) AS name, state,
    coalesce({has_control("name")}, false) AS controlled,
    list_filter(list_transform(category, lambda name: trim(name)), lambda name: name <> '') AS category,
    CASE
        WHEN coalesce(gmap_id, '') = '' THEN 'gmap_id is empty'
        WHEN {has_control("gmap_id")} THEN 'a control character in gmap_id'
    END AS reason,
    concat('name=', name) AS found
FROM place_lines
"""

_DELETE_REPEATED = """
DELETE FROM places USING (SELECT gmap_id, min(line) AS first FROM places GROUP BY gmap_id) AS seen
WHERE places.gmap_id = seen.gmap_id AND line > first
"""

# Places in the order of their file; then those that are in no metadata.
_CREATE_CATALOGUE = """
CREATE TABLE catalogue AS
SELECT
    gmap_id, CAST(row_number() OVER (ORDER BY line NULLS LAST, gmap_id) AS INTEGER) AS item, line IS NOT NULL AS listed,
    coalesce(nullif(name, ''), gmap_id) AS title, coalesce(category, []) AS category
FROM (SELECT DISTINCT gmap_id FROM reviews) LEFT JOIN places USING (gmap_id)
"""

_RULES = (
    ("permanently closed", "state = 'Permanently closed'"),
    ("control characters in a name are taken as spaces", "controlled"),
    ("no name: its gmap_id stands for it", "coalesce(name, '') = ''"),
    (f"no category: it is in {NO_CATEGORY}", "coalesce(len(category), 0) = 0"),
)


def load_places(connection: duckdb.DuckDBPyConnection, source: Source, report: RowReport, piece: Piece = WHOLE) -> Form:
    """Creates `places` from a metadata file; malformed rows go to `report` and are left out.

    Args:
      connection: see `timelines.open_database`.
      source: the file.
      report: receives the counts.
      piece: what to read of the file.

    Raises:
      MalformedSourceError: see `read_json_lines`.
    """
    form = read_json_lines(connection, source.path, _FIELDS, "place_lines", report, source.name, piece)
    connection.execute(_CREATE_PLACES)
    connection.execute("DROP TABLE place_lines")
    report_rejected(connection, "places", source.name, report)
    connection.execute("DELETE FROM places WHERE reason IS NOT NULL")
    return form


def create_catalogue(connection: duckdb.DuckDBPyConnection, name: str, report: RowReport) -> dict[str, Any]:
    """Creates `catalogue` (gmap_id, item, listed): the places that have a review; returns its metadata.

    Ids are in the order of the metadata file `name`; places that it lacks come after, by gmap_id. Repeated places are
    left out.
    """
    ((repeated,),) = connection.execute(_DELETE_REPEATED).fetchall()
    report.apply_rule(name, "a place of an earlier row", repeated, dropped=True)
    ((unreviewed,),) = connection.execute(
        "DELETE FROM places WHERE gmap_id NOT IN (SELECT gmap_id FROM reviews)"
    ).fetchall()
    report.apply_rule(name, "no review of the place", unreviewed, dropped=True)
    for rule, condition in _RULES:
        ((count,),) = connection.execute(f"SELECT count(*) FROM places WHERE {condition}").fetchall()
        report.apply_rule(name, rule, count, dropped=False)
    connection.execute(_CREATE_CATALOGUE)
    described = connection.execute("SELECT gmap_id, title, category FROM catalogue ORDER BY item").fetchall()
    raw_ids, titles, categories = zip(*described, strict=True) if described else ((), (), ())
    return catalogue_lists(raw_ids, titles, [names or [NO_CATEGORY] for names in categories])

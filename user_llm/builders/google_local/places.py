"""Reads the metadata of the places into the catalogue that every timeline refers to."""

from pathlib import Path
from typing import Any

import duckdb

from user_llm.builders.catalogue import NO_CATEGORY, catalogue_lists
from user_llm.builders.json_lines import ID, LIST, TEXT, load_json_lines
from user_llm.builders.malformed import RowReport
from user_llm.builders.rejected import report_rejected
from user_llm.builders.sql import CONTROL_CHARACTERS, has_control

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
    gmap_id, CAST(row_number() OVER (ORDER BY line NULLS LAST, gmap_id) AS INTEGER) AS item,
    coalesce(nullif(name, ''), gmap_id) AS title, coalesce(category, []) AS category
FROM (SELECT DISTINCT gmap_id FROM reviews) LEFT JOIN places USING (gmap_id)
"""

_RULES = (
    ("permanently closed", "state = 'Permanently closed'"),
    ("control characters in a name are taken as spaces", "controlled"),
    ("no name: its gmap_id stands for it", "coalesce(name, '') = ''"),
    (f"no category: it is in {NO_CATEGORY}", "coalesce(len(category), 0) = 0"),
)


def load_places(connection: duckdb.DuckDBPyConnection, name: str, path: Path, report: RowReport) -> None:
    """Creates `places` from a metadata file; malformed rows go to `report` and are left out, as repeated places are.

    Args:
      connection: see `timelines.open_database`.
      name: of the file, as published.
      path: the file.
      report: receives the counts.

    Raises:
      MalformedSourceError: see `load_json_lines`.
    """
    load_json_lines(connection, path, _FIELDS, "place_lines", report, name=name)
    connection.execute(_CREATE_PLACES)
    connection.execute("DROP TABLE place_lines")
    report_rejected(connection, "places", name, report)
    connection.execute("DELETE FROM places WHERE reason IS NOT NULL")
    ((repeated,),) = connection.execute(_DELETE_REPEATED).fetchall()
    report.apply_rule(name, "a place of an earlier row", repeated, dropped=True)


def create_catalogue(
    connection: duckdb.DuckDBPyConnection, places_file: str, reviews_file: str, report: RowReport
) -> dict[str, Any]:
    """Creates `catalogue` (gmap_id, item): the places that have a review; returns its metadata.

    Ids are in the order of the metadata file; places that it lacks come after, by gmap_id.
    """
    ((unreviewed,),) = connection.execute(
        "DELETE FROM places WHERE gmap_id NOT IN (SELECT gmap_id FROM reviews)"
    ).fetchall()
    report.apply_rule(places_file, "no review of the place", unreviewed, dropped=True)
    for rule, condition in _RULES:
        ((count,),) = connection.execute(f"SELECT count(*) FROM places WHERE {condition}").fetchall()
        report.apply_rule(places_file, rule, count, dropped=False)
    ((unknown,),) = connection.execute("SELECT count(*) FROM reviews ANTI JOIN places USING (gmap_id)").fetchall()
    report.apply_rule(
        reviews_file, f"the place is in no metadata: its gmap_id is its title, {NO_CATEGORY}", unknown, dropped=False
    )
    connection.execute(_CREATE_CATALOGUE)
    described = connection.execute("SELECT gmap_id, title, category FROM catalogue ORDER BY item").fetchall()
    raw_ids, titles, categories = zip(*described, strict=True) if described else ((), (), ())
    return catalogue_lists(raw_ids, titles, [names or [NO_CATEGORY] for names in categories])

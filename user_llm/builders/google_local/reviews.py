"""Reads the reviews file into `events` (see `timelines.py`), out of core, checking every row on the way."""

import duckdb

from user_llm.builders.catalogue import NO_CATEGORY
from user_llm.builders.json_lines import ID, TEXT, Form, read_json_lines
from user_llm.builders.malformed import QUOTED_CHARACTERS, RowReport
from user_llm.builders.pieces import Source
from user_llm.builders.rejected import report_rejected
from user_llm.builders.sql import has_control
from user_llm.builders.text_file import WHOLE, Piece
from user_llm.builders.timelines import END_OF_TIME

RATING_NAMES = ("1", "2", "3", "4", "5")

_FIELDS = {"user_id": ID, "gmap_id": ID, "time": TEXT, "rating": TEXT, "text": TEXT}

_CREATE_REVIEWS = f"""
CREATE TABLE reviews AS
WITH typed AS (
    SELECT
        * EXCLUDE (time),
        time AS written,
        CASE WHEN regexp_full_match(time, '[0-9]{{1,18}}') THEN CAST(time AS BIGINT) END AS time,
        CASE WHEN regexp_full_match(rating, '[1-5](\\.0+)?') THEN CAST(rating[1] AS INTEGER) END AS stars
    FROM review_lines
)
SELECT
    line, user_id, gmap_id, time, stars AS rating, rating IS NULL AS unrated, text AS review,
    CASE
        WHEN coalesce(user_id, '') = '' THEN 'user_id is empty'
        WHEN coalesce(gmap_id, '') = '' THEN 'gmap_id is empty'
        WHEN {has_control("user_id || gmap_id")} THEN 'a control character in user_id or gmap_id'
        WHEN time IS NULL THEN 'time is not a whole number'
        WHEN time > {END_OF_TIME * 1000} THEN 'time is not in milliseconds from 1970 to 2100'
        WHEN stars IS NULL AND NOT unrated THEN 'rating is not one of {", ".join(RATING_NAMES)}'
    END AS reason,
    CASE WHEN reason IS NOT NULL THEN concat(
        'user_id=', user_id, ', gmap_id=', gmap_id, ', time=', written, ', rating=', rating
    )[:{QUOTED_CHARACTERS}] END AS found
FROM typed
"""

_DELETE_REPEATED = """
DELETE FROM reviews USING (
    SELECT user_id, gmap_id, time, min(line) AS first FROM reviews GROUP BY ALL HAVING count(*) > 1
) AS seen
WHERE reviews.user_id = seen.user_id AND reviews.gmap_id = seen.gmap_id AND reviews.time = seen.time AND line > first
"""

_CREATE_EVENTS = """
CREATE VIEW events AS
SELECT
    user_id, item, rating, time // 1000 AS timestamp,
    -- The milliseconds of a second come before the order of the rows.
    time % 1000 * 1000000000000000 + line AS line,
    coalesce(review, '') AS review
FROM reviews JOIN catalogue USING (gmap_id)
"""


def load_reviews(
    connection: duckdb.DuckDBPyConnection, source: Source, report: RowReport, piece: Piece = WHOLE
) -> Form:
    """Creates `reviews` from a reviews file; malformed rows go to `report` and are left out, as unrated ones are.

    Args:
      connection: see `timelines.open_database`.
      source: the file.
      report: receives the counts.
      piece: what to read of the file.

    Raises:
      MalformedSourceError: see `read_json_lines`.
    """
    form = read_json_lines(connection, source.path, _FIELDS, "review_lines", report, source.name, piece)
    connection.execute(_CREATE_REVIEWS)
    connection.execute("DROP TABLE review_lines")
    report_rejected(connection, "reviews", source.name, report)
    connection.execute("DELETE FROM reviews WHERE reason IS NOT NULL")
    ((count,),) = connection.execute("DELETE FROM reviews WHERE unrated").fetchall()
    report.apply_rule(source.name, "no rating", count, dropped=True)
    return form


def create_events(connection: duckdb.DuckDBPyConnection, name: str, report: RowReport) -> None:
    """Makes `events` of `reviews` and `catalogue`, without repeated reviews.

    User ids are text: their 21 digits overflow an integer.

    Args:
      connection: one that has both.
      name: of the reviews file.
      report: receives the counts.
    """
    ((count,),) = connection.execute(_DELETE_REPEATED).fetchall()
    report.apply_rule(name, "user, place and time of an earlier row", count, dropped=True)
    ((unknown,),) = connection.execute(
        "SELECT count(*) FROM reviews JOIN catalogue USING (gmap_id) WHERE NOT listed"
    ).fetchall()
    rule = f"the place is in no metadata: its gmap_id is its title, {NO_CATEGORY}"
    report.apply_rule(name, rule, unknown, dropped=False)
    connection.execute(_CREATE_EVENTS)

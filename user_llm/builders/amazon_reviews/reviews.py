"""Reads the review file into the table `reviews`, checking every row and applying the rules of README.md."""

import duckdb

from user_llm.builders.json_lines import ID, TEXT, Form, read_json_lines
from user_llm.builders.malformed import QUOTED_CHARACTERS, RowReport
from user_llm.builders.pieces import Source
from user_llm.builders.rejected import report_rejected
from user_llm.builders.sql import has_control
from user_llm.builders.text_file import WHOLE, Piece
from user_llm.builders.timelines import END_OF_TIME

RATING_NAMES = ("", "1.0", "2.0", "3.0", "4.0", "5.0")
"""By class id; entry 0 is padding."""

_FIELDS = {"reviewerID": ID, "asin": ID, "overall": TEXT, "unixReviewTime": TEXT}

# A user's second review of a product is a copy for another variant of it, or a change of mind: no second event.
_DELETE_REPEATED = """
WITH repeated AS (SELECT user_id, asin FROM reviews GROUP BY user_id, asin HAVING count(*) > 1)
DELETE FROM reviews WHERE line IN (
    SELECT line FROM reviews SEMI JOIN repeated USING (user_id, asin)
    QUALIFY row_number() OVER (PARTITION BY user_id, asin ORDER BY timestamp, line) > 1
)
"""


def load_reviews(
    connection: duckdb.DuckDBPyConnection, source: Source, review: str, report: RowReport, piece: Piece = WHOLE
) -> Form:
    """Creates `reviews` (user_id, asin, rating, timestamp, line, review); malformed rows go to `report`.

    Args:
      connection: one that has `text.add_functions`.
      source: the review file.
      review: the field that is taken as the review.
      report: receives the counts.
      piece: what to read of the file.

    Raises:
      MalformedSourceError: see `read_json_lines`.
    """
    fields = {**_FIELDS, review: TEXT}
    form = read_json_lines(connection, source.path, fields, "raw_reviews", report, source.name, piece)
    clean = "one_line" if review == "summary" else "many_lines"
    connection.execute(f"""
        CREATE TABLE reviews AS
        WITH typed AS (
            SELECT
                line, reviewerID AS user_id, asin, try_cast(overall AS DOUBLE) AS stars,
                CASE WHEN regexp_full_match(unixReviewTime, '-?[0-9]{{1,18}}')
                    THEN CAST(unixReviewTime AS BIGINT) END AS timestamp,
                overall, unixReviewTime, "{review}" AS review
            FROM raw_reviews
        )
        SELECT
            line, user_id, asin, CAST(stars AS INTEGER) AS rating, timestamp, {clean}(review) AS review,
            CASE
                WHEN coalesce(user_id, '') = '' THEN 'reviewerID is missing'
                WHEN coalesce(asin, '') = '' THEN 'asin is missing'
                WHEN {has_control("user_id || asin")} THEN 'a control character in reviewerID or asin'
                WHEN coalesce(stars NOT IN (1, 2, 3, 4, 5), true) THEN 'overall is not 1, 2, 3, 4 or 5'
                WHEN coalesce(timestamp NOT BETWEEN 0 AND {END_OF_TIME}, true)
                    THEN 'unixReviewTime is not in whole seconds from 1970 to 2100'
            END AS reason,
            CASE WHEN reason IS NOT NULL THEN concat_ws(
                ', ', 'reviewerID=' || user_id, 'asin=' || asin, 'overall=' || overall,
                'unixReviewTime=' || unixReviewTime
            )[:{QUOTED_CHARACTERS}] END AS found
        FROM typed
    """)
    connection.execute("DROP TABLE raw_reviews")
    report_rejected(connection, "reviews", source.name, report)
    connection.execute("DELETE FROM reviews WHERE reason IS NOT NULL")
    connection.execute("ALTER TABLE reviews DROP COLUMN reason; ALTER TABLE reviews DROP COLUMN found")
    return form


def create_events(connection: duckdb.DuckDBPyConnection, name: str, review: str, report: RowReport) -> None:
    """Makes `events` of `reviews` and `products`, without a user's later reviews of a product.

    Args:
      connection: one that has both.
      name: of the review file.
      review: see `load_reviews`.
      report: receives the counts.
    """
    ((count,),) = connection.execute(_DELETE_REPEATED).fetchall()
    report.apply_rule(name, "a later review of a product that its user has reviewed", count, dropped=True)
    ((empty,),) = connection.execute("SELECT count(*) FROM reviews WHERE review = ''").fetchall()
    report.apply_rule(name, f"an event without review, as {review} is missing or empty", empty, dropped=False)
    connection.execute("CREATE VIEW events AS SELECT * EXCLUDE asin FROM reviews JOIN products USING (asin)")

"""Reads the ratings file into the table `events`, out of core, checking every row on the way."""

from pathlib import Path

import duckdb
import pyarrow as pa

from tfds_builders.malformed import EXAMPLES_PER_REASON, MalformedSourceError, RowReport
from tfds_builders.movielens.format import RATINGS_COLUMNS, FileFormat, column_positions

_END_OF_TIME = 4_102_444_800
"""2100-01-01 in seconds: later timestamps are milliseconds or worse."""

_SNIPPET = 200
"""How much of a malformed line the summary quotes, in characters."""


def load_ratings(
    connection: duckdb.DuckDBPyConnection, path: Path, form: FileFormat, raw_ids: list[str], report: RowReport
) -> None:
    """Creates the table `events` (see `timelines.py`) from a ratings file; malformed rows go to `report`.

    Each line is read whole and split here, in DuckDB, so that every row keeps its line number and a broken one cannot hide
    its neighbours. Ratings files are never quoted, in any release. Blank lines hold no row. Rows that repeat a (user, movie)
    pair are kept: they are events.

    Args:
      connection: a database of `open_database`.
      path: the ratings file.
      form: its layout.
      raw_ids: the catalogue's movieIds, index = item id, entry 0 padding.
      report: receives the counts.

    Raises:
      MalformedSourceError: the file has no rows, a line beyond any row's length, or see `column_positions`.
    """
    positions, num_fields = column_positions(path, form, RATINGS_COLUMNS)
    # Named by parameters below, hence typed tables: ids and class numbers are looked up by join and list position.
    catalogue = pa.table({"movie": pa.array([int(i) for i in raw_ids[1:]], pa.int64()), "item": range(1, len(raw_ids))})
    connection.register("catalogue", catalogue)
    user, movie, rating, timestamp = (f"field[{position + 1}]" for position in positions)
    skip = int(form.has_header)
    try:
        connection.execute(
            f"""
            CREATE TABLE rows AS
            WITH lines AS (
                -- Latin-1 maps any byte to a character: a byte that does not belong becomes a malformed field, with its line.
                SELECT row_number() OVER () + {skip} AS line, text
                FROM read_csv(
                    $path, columns = {{'text': 'VARCHAR'}}, auto_detect = false, header = false, skip = {skip},
                    delim = '\x01', quote = '', escape = '', encoding = 'latin-1'
                )
            ),
            fields AS (
                SELECT line, text, string_split(text, $delimiter) AS field FROM lines WHERE text <> ''
            ),
            typed AS (
                SELECT
                    line, text, len(field) AS num_fields,
                    {_integer(user)} AS user_id, {_integer(movie)} AS movie, {_integer(timestamp)} AS timestamp,
                    try_cast({rating} AS DOUBLE) AS rating
                FROM fields
            ),
            matched AS (
                SELECT typed.*, item, list_position($ratings, rating) AS rating_class
                FROM typed LEFT JOIN catalogue USING (movie)
            )
            SELECT
                line, user_id, CAST(item AS INTEGER) AS item, CAST(rating_class AS INTEGER) AS rating, timestamp,
                CASE
                    WHEN num_fields <> {num_fields} THEN 'not {num_fields} fields'
                    WHEN user_id IS NULL THEN 'userId is not an integer'
                    WHEN movie IS NULL THEN 'movieId is not an integer'
                    WHEN rating IS NULL OR NOT isfinite(rating) THEN 'rating is not a number'
                    WHEN timestamp IS NULL THEN 'timestamp is not an integer'
                    WHEN rating_class IS NULL THEN $wrong_rating
                    WHEN timestamp NOT BETWEEN 0 AND {_END_OF_TIME} THEN 'timestamp is not in seconds from 1970 to 2100'
                    WHEN item IS NULL THEN $unknown_movie
                END AS reason,
                CASE WHEN reason IS NOT NULL THEN text[:{_SNIPPET}] END AS text
            FROM matched
            """,
            {
                "path": str(path),
                "delimiter": form.delimiter,
                "ratings": [float(name) for name in form.rating_names],
                "wrong_rating": f"rating is not one of {', '.join(form.rating_names)}",
                "unknown_movie": f"movieId is not in {form.movies_file}",
            },
        )
    except duckdb.InvalidInputException as error:
        raise MalformedSourceError(f"{path.name} is not a text file of ratings: {error}") from error
    connection.unregister("catalogue")
    report.rows[path.name] = connection.execute("SELECT count(*) FROM rows").fetchone()[0]
    if not report.rows[path.name]:
        raise MalformedSourceError(f"{path.name} has no rows: expected {', '.join(RATINGS_COLUMNS)} after the header.")
    _report_rejected(connection, path.name, report)
    connection.execute("CREATE VIEW events AS SELECT * EXCLUDE (reason, text) FROM rows WHERE reason IS NULL")


def _integer(expression: str) -> str:
    """SQL for `format.parse_integer`: a plain cast would round 3.5 to 4 and take 1e5 and ' 7'."""
    return f"CASE WHEN regexp_full_match({expression}, '-?[0-9]{{1,18}}') THEN try_cast({expression} AS BIGINT) END"


def _report_rejected(connection: duckdb.DuckDBPyConnection, file: str, report: RowReport) -> None:
    reasons = connection.execute(
        f"""
        SELECT reason, count(*), list((line, text) ORDER BY line)[:{EXAMPLES_PER_REASON}]
        FROM rows WHERE reason IS NOT NULL GROUP BY reason ORDER BY min(line)
        """
    ).fetchall()
    for reason, count, first in reasons:
        report.reject(file, reason, [(line, repr(text)) for line, text in first], count)

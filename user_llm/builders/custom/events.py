"""Reads a custom dataset's events, checks every row, and makes `events` (see `timelines.py`) of them."""

from collections.abc import Mapping
from pathlib import Path

import duckdb

from user_llm.builders.custom.config import OPTIONAL, REQUIRED, TIMESTAMP_UNITS, CustomConfig
from user_llm.builders.custom.rows import Rows, as_number, check_rows, field_of, is_whole, open_rows
from user_llm.builders.json_lines import Form
from user_llm.builders.malformed import QUOTED_CHARACTERS, MalformedSourceError, RowReport
from user_llm.builders.pieces import Source
from user_llm.builders.rejected import report_rejected
from user_llm.builders.sql import has_control, literal
from user_llm.builders.text_file import WHOLE, Piece
from user_llm.builders.timelines import END_OF_TIME

MAX_RATINGS = 100
"""Ratings are classes: more different values than this are no rating scale."""

_WHOLE_NUMBER = r"-?[0-9]{1,18}(\.0*)?"
"""Tables with gaps write whole numbers as 5.0."""

_ISO_8601 = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?"
    r"(Z| UTC|[+-]((0[0-9]|1[0-3])(:?[0-5][0-9])?|14(:?00)?))?)?"
)
"""A date, or a date and time; without an offset it is UTC. No place is more than 14 hours from it."""

_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"

_POSITION_BITS = 43
"""A row's position stays below 2**43; what remains of 63 bits holds the microseconds of its second."""

_CREATE_INTERACTIONS = """
CREATE TABLE IF NOT EXISTS interactions (
    file VARCHAR, position BIGINT, line BIGINT, user_id VARCHAR, item VARCHAR, micros BIGINT,
    title VARCHAR, category VARCHAR[], rating DOUBLE, review VARCHAR, reason VARCHAR, found VARCHAR
)
"""

_INSERT_INTERACTIONS = """
INSERT INTO interactions BY NAME
WITH typed AS (
    SELECT *,
        CASE
            WHEN regexp_full_match(timestamp, '{whole_number}')
            THEN CAST(split_part(timestamp, '.', 1) AS HUGEINT) * {micros_per_unit}
            WHEN regexp_full_match(timestamp, '{iso_8601}') THEN epoch_us(try_cast(timestamp AS TIMESTAMPTZ))
        END AS micros,
        regexp_full_match(timestamp, '{whole_number}') AND micros > 0 AND micros < {earliest} AS in_seconds,
        CASE WHEN regexp_full_match(rating, '{number}') THEN try_cast(rating AS DOUBLE) END AS stars
    FROM (SELECT {fields} FROM source_rows)
)
SELECT
    $file AS file, $before + line AS position, line, "user" AS user_id, item, try_cast(micros AS BIGINT) AS micros,
    title, category, stars AS rating, review,
    CASE
        WHEN coalesce("user", '') = '' THEN {user} || ' is empty'
        WHEN coalesce(item, '') = '' THEN {item} || ' is empty'
        WHEN coalesce(timestamp, '') = '' THEN {timestamp} || ' is empty'
        WHEN typed.micros IS NULL THEN {timestamp} || ' is neither a whole number nor ISO 8601'
        WHEN {controlled} THEN 'a control character in user, item, title or category'
        WHEN in_seconds
        THEN {timestamp} || ' is in the first weeks of 1970: it is in seconds, not in timestamp_unit={unit}'
        WHEN typed.micros NOT BETWEEN 0 AND {end_of_time}
        THEN {timestamp} || ' is not from 1970 to 2100 (whole numbers are read as timestamp_unit={unit})'
        WHEN stars IS NULL AND {has_rating} THEN {rating} || ' is not a number'
        WHEN NOT isfinite(stars) THEN {rating} || ' is not a number'
    END AS reason,
    CASE WHEN reason IS NOT NULL THEN concat_ws(', ', {found})[:{quoted_characters}] END AS found
FROM typed
"""

# Of all rows, those that decide about the catalogue, the classes of the ratings and the order of the users.
FIRST_ROWS = f"""
FROM interactions
WHERE reason IS NULL AND position IN (
    SELECT unnest([min(position), min(position) FILTER (len(title) > 0), min(position) FILTER (len(category) > 0)])
    FROM interactions WHERE reason IS NULL GROUP BY item
    UNION ALL
    SELECT min(position) FROM interactions WHERE reason IS NULL GROUP BY rating
    UNION ALL
    SELECT min(position) FROM interactions WHERE reason IS NULL AND NOT {is_whole("user_id")}
)
"""

_CREATE_USER_ORDER = f"""
CREATE TABLE user_order AS
SELECT bool_and({is_whole("user_id")}) AS numbers FROM interactions WHERE reason IS NULL
"""

_CREATE_EVENTS = """
CREATE TABLE events AS
SELECT
    {user_id} AS user_id, catalogue.item, coalesce(rating_classes.class, 0) AS rating,
    CAST(micros // 1000000 AS BIGINT) AS timestamp,
    -- Timestamps that are finer than seconds come before the order of the rows.
    (CAST(micros % 1000000 AS BIGINT) << {position_bits}) + interactions.position AS line,
    coalesce(review, '') AS review
FROM interactions
JOIN catalogue ON catalogue.raw_id = interactions.item
LEFT JOIN rating_classes ON rating_classes.rating = interactions.rating
WHERE reason IS NULL
"""


def load_interactions(
    connection: duckdb.DuckDBPyConnection, files: Mapping[str, Path], config: CustomConfig, report: RowReport
) -> None:
    """`read_interactions` of whole files, by name, which are checked.

    Raises:
      MalformedSourceError: see `open_rows` and `check_rows`.
    """
    for name, path in files.items():
        form = read_interactions(connection, Source(name, path), config, report)
        check_rows(Rows(name, path, config.columns, config.category_separator), form, report)


def read_interactions(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    config: CustomConfig,
    report: RowReport,
    piece: Piece = WHOLE,
) -> Form:
    """Adds to `interactions`, one row an event; malformed ones have a `reason`, and go to `report`.

    Raises:
      MalformedSourceError: see `open_rows`.
    """
    columns, name = config.columns, source.name
    names = {role: literal(column) for role, column in columns.items()}
    query = _INSERT_INTERACTIONS.format(
        fields=", ".join(["line", *(field_of(role, role in columns) for role in (*REQUIRED, *OPTIONAL))]),
        whole_number=_WHOLE_NUMBER,
        micros_per_unit=1_000_000 // TIMESTAMP_UNITS[config.timestamp_unit],
        iso_8601=_ISO_8601,
        number=_NUMBER,
        end_of_time=END_OF_TIME * 1_000_000,
        # What is a time of our days in seconds.
        earliest=END_OF_TIME * 1_000_000 // TIMESTAMP_UNITS["ms"] if config.timestamp_unit == "ms" else 0,
        controlled=has_control("""concat("user", item, title, array_to_string(category, ''))"""),
        unit=config.timestamp_unit,
        has_rating="rating" in columns,
        found=", ".join(
            f"""{names[role]} || '=' || coalesce("{role}", '')""" for role in (*REQUIRED, "rating") if role in columns
        ),
        quoted_characters=QUOTED_CHARACTERS,
        **{role: names.get(role, "''") for role in (*REQUIRED, "rating")},
    )
    connection.execute("SET TimeZone = 'UTC'")  # of times without an offset
    connection.execute(_CREATE_INTERACTIONS)
    before = rows_before(connection, "interactions", piece)
    with open_rows(connection, Rows(name, source.path, columns, config.category_separator, piece), report) as form:
        connection.execute(query, {"file": name, "before": before})
    report_rejected(connection, f"(FROM interactions WHERE file = {literal(name)})", name, report)
    return form


def rows_before(connection: duckdb.DuckDBPyConnection, table: str, piece: Piece) -> int:
    """The position behind which those of a file's rows begin: none that `table` has, nor a file read elsewhere."""
    ((last,),) = connection.execute(f"SELECT coalesce(max(position), 0) FROM {table}").fetchall()
    return max(last, piece.before)


def create_rating_classes(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Makes `rating_classes` (rating, class) from `interactions`; returns the names of the classes.

    Classes ascend from 1 and entry 0 is padding; a dataset without ratings has no more than that.

    Raises:
      MalformedSourceError: there are more than `MAX_RATINGS` different ratings.
    """
    found = connection.execute(
        f"""
        SELECT DISTINCT rating FROM interactions WHERE reason IS NULL AND rating IS NOT NULL
        ORDER BY rating LIMIT {MAX_RATINGS + 1}
        """
    ).fetchall()
    ratings = [rating for (rating,) in found]
    if len(ratings) > MAX_RATINGS:
        raise MalformedSourceError(
            f"there are more than {MAX_RATINGS} different ratings, from {ratings[0]:g}: a rating is a class, such as "
            "a number of stars. Round them, or leave the column out."
        )
    whole = all(rating.is_integer() for rating in ratings)
    connection.execute(
        """
        CREATE TABLE rating_classes AS
        SELECT rating, CAST(row_number() OVER (ORDER BY rating) AS INTEGER) AS class
        FROM (SELECT unnest($ratings::DOUBLE[]) AS rating)
        """,
        {"ratings": ratings},
    )
    return ["", *(str(int(rating)) if whole else str(rating) for rating in ratings)]


def create_user_order(connection: duckdb.DuckDBPyConnection) -> None:
    """Makes `user_order`: users are ordered as numbers where all ids are whole numbers, else as text."""
    connection.execute(_CREATE_USER_ORDER)


def user_id_of(connection: duckdb.DuckDBPyConnection) -> str:
    """SQL for the user's id in the type that `user_order` says."""
    ((numbers,),) = connection.execute("SELECT numbers FROM user_order").fetchall()
    return as_number("user_id") if numbers else "user_id"


def create_events(connection: duckdb.DuckDBPyConnection) -> None:
    """Makes `events` from `interactions`, `catalogue`, `rating_classes` and `user_order`."""
    connection.execute(_CREATE_EVENTS.format(user_id=user_id_of(connection), position_bits=_POSITION_BITS))
    connection.execute("DROP TABLE interactions")

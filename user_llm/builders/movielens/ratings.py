"""Reads the ratings file into `rows`, out of core, checking every row on the way."""

import duckdb
import pyarrow as pa

from user_llm.builders.ahead import one_ahead
from user_llm.builders.lines import read_lines
from user_llm.builders.malformed import QUOTED_CHARACTERS, RowReport
from user_llm.builders.movielens.format import (
    ID_PATTERN,
    INTEGER_PATTERN,
    NO_LINE_END,
    RATINGS_COLUMNS,
    FileFormat,
    column_positions,
)
from user_llm.builders.movielens.plain_rows import PlainRows
from user_llm.builders.pieces import Source
from user_llm.builders.rejected import report_rejected
from user_llm.builders.text_file import WHOLE, Piece
from user_llm.builders.timelines import END_OF_TIME

_ROWS_PER_THREAD = 1 << 17

_CREATE_ROWS = """
CREATE TABLE rows (line BIGINT, user_id BIGINT, item INTEGER, rating INTEGER, timestamp BIGINT, reason TEXT, found TEXT)
"""

_INSERT_PLAIN = "INSERT INTO rows BY NAME SELECT * FROM plain"

_INSERT_OTHERS = """
INSERT INTO rows
WITH stripped AS (
    SELECT line, rtrim(text, chr(13) || chr(10)) AS text, ends_with(text, chr(10)) AS ended
    FROM others WHERE line > {header_lines}
),
fields AS (
    SELECT line, text, ended, string_split(text, $delimiter) AS field FROM stripped WHERE text <> ''
),
typed AS (
    SELECT
        line, text, ended, len(field) AS num_fields,
        {user} AS user_id, {movie} AS movie, try_cast({rating} AS DOUBLE) AS stars, {timestamp} AS timestamp
    FROM fields
),
matched AS (
    SELECT typed.*, catalogue.item, list_position($stars, stars) AS rating
    FROM typed LEFT JOIN catalogue USING (movie)
)
SELECT
    line, user_id, CAST(item AS INTEGER) AS item, CAST(rating AS INTEGER) AS rating, timestamp,
    CASE
        WHEN num_fields <> {num_fields} THEN 'not {num_fields} fields'
        WHEN user_id IS NULL THEN 'userId is not a whole number'
        WHEN movie IS NULL THEN 'movieId is not a whole number'
        WHEN stars IS NULL OR NOT isfinite(stars) THEN 'rating is not a number'
        WHEN timestamp IS NULL THEN 'timestamp is not a whole number'
        WHEN rating IS NULL THEN $wrong_rating
        WHEN timestamp NOT BETWEEN 0 AND {end_of_time} THEN 'timestamp is not in seconds from 1970 to 2100'
        WHEN item IS NULL THEN $unknown_movie
        WHEN NOT ended THEN '{no_line_end}'
    END AS reason,
    CASE WHEN reason IS NOT NULL THEN '''' || text[:{quoted}] || '''' END AS found
FROM matched
"""


def load_ratings(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    form: FileFormat,
    raw_ids: list[str],
    report: RowReport,
    piece: Piece = WHOLE,
) -> None:
    """Creates `rows` from a ratings file; malformed ones have a `reason`, and go to `report`.

    Lines are read whole and split in DuckDB, so that every row keeps its line number and a broken one cannot hide
    its neighbours, which a csv reader does not promise. Ratings are never quoted, in any release. Blank lines hold
    no row.

    Args:
      connection: see `timelines.open_database`.
      source: the ratings file.
      form: its layout.
      raw_ids: movieIds of the catalogue; the index is the item id, entry 0 is padding.
      report: receives the counts.
      piece: what to read of the file.

    Raises:
      MalformedSourceError: see `column_positions`.
    """
    positions, num_fields = column_positions(source.path, form, RATINGS_COLUMNS)
    user, movie, rating, timestamp = (f"field[{position + 1}]" for position in positions)
    insert_others = _INSERT_OTHERS.format(
        header_lines=int(form.has_header),
        user=_whole_number(user, ID_PATTERN),
        movie=_whole_number(movie, ID_PATTERN),
        rating=rating,
        timestamp=_whole_number(timestamp, INTEGER_PATTERN),
        num_fields=num_fields,
        end_of_time=END_OF_TIME,
        no_line_end=NO_LINE_END,
        quoted=QUOTED_CHARACTERS,
    )
    parameters = {
        "delimiter": form.delimiter,
        "stars": [float(name) for name in form.rating_names],
        "wrong_rating": f"rating is not one of {', '.join(form.rating_names)}",
        "unknown_movie": f"movieId is not in {form.movies_file}",
    }
    plain_rows = PlainRows(form, positions, num_fields, raw_ids)
    movies = pa.array([int(raw_id) for raw_id in raw_ids[1:]], pa.int64())
    connection.register("catalogue", pa.table({"movie": movies, "item": range(1, len(raw_ids))}))
    connection.execute(_CREATE_ROWS)
    for plain, others in one_ahead(map(plain_rows.split, read_lines(source.path, source.name, piece))):
        connection.register("plain", plain)
        connection.execute(_INSERT_PLAIN)
        if len(others):
            # In pieces, as DuckDB gives each to one thread.
            connection.register("others", pa.Table.from_batches([others]).to_reader(_ROWS_PER_THREAD))
            connection.execute(insert_others, parameters)
            connection.unregister("others")
        connection.unregister("plain")
    connection.unregister("catalogue")
    ((report.rows[source.name],),) = connection.execute("SELECT count(*) FROM rows").fetchall()
    report_rejected(connection, "rows", source.name, report)


def _whole_number(text: str, pattern: str) -> str:
    """SQL for the number that `text` spells by `pattern`: a plain cast would round 3.5 to 4, and take 1e5 and ' 7'."""
    return f"CASE WHEN regexp_full_match({text}, '{pattern}') THEN CAST({text} AS BIGINT) END"

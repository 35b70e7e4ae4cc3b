"""The rules of MovieLens: a rating is an event; the movies file is the catalogue."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import duckdb

from user_llm.builders.json_lines import Form
from user_llm.builders.malformed import MalformedSourceError, RowReport
from user_llm.builders.movielens.format import RATINGS_COLUMNS, FileFormat
from user_llm.builders.movielens.ratings import load_ratings
from user_llm.builders.pieces import Source
from user_llm.builders.rules import Rules
from user_llm.builders.text_file import Piece


@dataclass(frozen=True)
class MovieLensRules(Rules):
    """Of one release.

    Attributes:
      ratings: the ratings file.
      form: its layout.
      movies: `catalogue_lists` of the movies file.
    """

    ROWS: ClassVar = "rows"

    ratings: Path
    form: FileFormat
    movies: dict[str, Any]

    def sources(self) -> Sequence[Source]:
        return [Source(self.ratings.name, self.ratings)]

    def read(self, connection: duckdb.DuckDBPyConnection, source: Source, piece: Piece, report: RowReport) -> Form:
        load_ratings(connection, source, self.form, self.movies["raw_ids"], report, piece)
        return Form()

    def check(self, source: Source, form: Form, report: RowReport) -> None:
        if not report.rows[source.name]:
            raise MalformedSourceError(f"{source.name} has no rows: expected {', '.join(RATINGS_COLUMNS)}.")

    def catalogue(self, connection: duckdb.DuckDBPyConnection, report: RowReport) -> dict[str, Any]:
        return {**self.movies, "rating_names": ["", *self.form.rating_names]}

    def events(self, connection: duckdb.DuckDBPyConnection, report: RowReport) -> None:
        connection.execute("CREATE VIEW events AS SELECT * EXCLUDE (reason, found) FROM rows WHERE reason IS NULL")

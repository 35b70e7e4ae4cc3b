"""The rules of Google Local reviews: a rated review is an event; the metadata file describes the places."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import duckdb

from user_llm.builders.google_local.places import create_catalogue, load_places
from user_llm.builders.google_local.reviews import RATING_NAMES, create_events, load_reviews
from user_llm.builders.json_lines import Form, check_json_lines
from user_llm.builders.malformed import RowReport
from user_llm.builders.pieces import Source
from user_llm.builders.rules import Rules
from user_llm.builders.text_file import Piece


@dataclass(frozen=True)
class GoogleLocalRules(Rules):
    """Of one state.

    Attributes:
      places: the metadata file.
      reviews: the reviews file.
    """

    ROWS: ClassVar = "reviews"
    ITEMS: ClassVar = "places"
    OF_CATALOGUE: ClassVar = ("catalogue",)

    places: Source
    reviews: Source

    def sources(self) -> Sequence[Source]:
        return [self.places, self.reviews]

    def read(self, connection: duckdb.DuckDBPyConnection, source: Source, piece: Piece, report: RowReport) -> Form:
        return (load_places if source.of_items else load_reviews)(connection, source, report, piece)

    def check(self, source: Source, form: Form, report: RowReport) -> None:
        check_json_lines(source.name, form, report)

    def for_catalogue(self) -> str:
        return "SELECT DISTINCT gmap_id FROM reviews"

    def catalogue(self, connection: duckdb.DuckDBPyConnection, report: RowReport) -> dict[str, Any]:
        catalogue = create_catalogue(connection, self.places.name, report)
        return {**catalogue, "rating_names": ["", *RATING_NAMES]}

    def events(self, connection: duckdb.DuckDBPyConnection, report: RowReport) -> None:
        create_events(connection, self.reviews.name, report)

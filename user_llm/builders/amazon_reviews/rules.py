"""The rules of Amazon reviews: a review is an event; the metadata file describes the products."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import duckdb

from user_llm.builders.amazon_reviews.catalogue import check_metadata, create_catalogue, load_metadata
from user_llm.builders.amazon_reviews.reviews import RATING_NAMES, create_events, load_reviews
from user_llm.builders.json_lines import Form, check_json_lines
from user_llm.builders.malformed import RowReport
from user_llm.builders.pieces import Source
from user_llm.builders.rules import Rules
from user_llm.builders.text import add_functions
from user_llm.builders.text_file import Piece


@dataclass(frozen=True)
class AmazonRules(Rules):
    """Of one category of one release.

    Attributes:
      reviews: the review file.
      metadata: the metadata file; None where there is none.
      review: the field that is the dataset's review.
      literal: whether metadata rows are Python literals.
      level: of the category path, see `create_catalogue`.
    """

    ROWS: ClassVar = "reviews"
    ITEMS: ClassVar = "metadata"
    OF_CATALOGUE: ClassVar = ("products",)

    reviews: Source
    metadata: Source | None
    review: str
    literal: bool
    level: int

    def prepare(self, connection: duckdb.DuckDBPyConnection) -> None:
        add_functions(connection)

    def sources(self) -> Sequence[Source]:
        return [self.reviews, *([self.metadata] if self.metadata else [])]

    def read(self, connection: duckdb.DuckDBPyConnection, source: Source, piece: Piece, report: RowReport) -> Form:
        if source.of_items:
            return load_metadata(connection, source, literal=self.literal, report=report, piece=piece)
        return load_reviews(connection, source, self.review, report, piece)

    def check(self, source: Source, form: Form, report: RowReport) -> None:
        if source.of_items:
            check_metadata(source, form, literal=self.literal, report=report)
        else:
            check_json_lines(source.name, form, report)

    def for_catalogue(self) -> str:
        return "SELECT DISTINCT asin FROM reviews"

    def catalogue(self, connection: duckdb.DuckDBPyConnection, report: RowReport) -> dict[str, Any]:
        catalogue = create_catalogue(connection, self.metadata, level=self.level, report=report)
        return {**catalogue, "rating_names": list(RATING_NAMES)}

    def events(self, connection: duckdb.DuckDBPyConnection, report: RowReport) -> None:
        create_events(connection, self.reviews.name, self.review, report)

"""The rules of a custom dataset: files of events, and of items where there are any."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import duckdb

from user_llm.builders.custom.config import CustomConfig
from user_llm.builders.custom.events import (
    FIRST_ROWS,
    create_events,
    create_rating_classes,
    create_user_order,
    read_interactions,
    user_id_of,
)
from user_llm.builders.custom.items import count_rules_of_events, create_catalogue, read_items
from user_llm.builders.custom.rows import Rows, check_rows, cut_of
from user_llm.builders.json_lines import Form
from user_llm.builders.malformed import RowReport
from user_llm.builders.pieces import Source
from user_llm.builders.rules import Rules
from user_llm.builders.text_file import Piece


@dataclass(frozen=True)
class CustomRules(Rules):
    """Of one dataset.

    Attributes:
      config: its files and columns.
    """

    ROWS: ClassVar = "interactions"
    ITEMS: ClassVar = "item_rows"
    OF_CATALOGUE: ClassVar = ("catalogue", "first_title", "first_category", "rating_classes", "user_order")

    config: CustomConfig

    def sources(self) -> Sequence[Source]:
        files = self.config.named_files().items()
        return [
            Source(name, path, cut_of(path), of_items=number >= len(self.config.files))
            for number, (name, path) in enumerate(files)
        ]

    def read(self, connection: duckdb.DuckDBPyConnection, source: Source, piece: Piece, report: RowReport) -> Form:
        add = read_items if source.of_items else read_interactions
        return add(connection, source, self.config, report, piece)

    def check(self, source: Source, form: Form, report: RowReport) -> None:
        columns = self.config.item_columns if source.of_items else self.config.columns
        check_rows(Rows(source.name, source.path, columns, self.config.category_separator), form, report)

    def for_catalogue(self) -> str:
        return FIRST_ROWS

    def catalogue(self, connection: duckdb.DuckDBPyConnection, report: RowReport) -> dict[str, Any]:
        catalogue = create_catalogue(connection, self.config, report)
        create_user_order(connection)
        rating_names = create_rating_classes(connection)
        return {**catalogue, "rating_names": rating_names, "custom": self.config.meaning()}

    def user_id(self, connection: duckdb.DuckDBPyConnection) -> str:
        return user_id_of(connection)

    def events(self, connection: duckdb.DuckDBPyConnection, report: RowReport) -> None:
        count_rules_of_events(connection, self.config, report)
        create_events(connection)

"""What a family of datasets does with its rows, in steps: each holds for some of the rows as for all.

One machine takes the steps over all rows in one database (`load`); many take them over pieces of the files and groups
of users (`user_llm.builders.beam`). The SQL is the same.
"""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import duckdb

from user_llm.builders.json_lines import Form
from user_llm.builders.malformed import RowReport
from user_llm.builders.pieces import Source
from user_llm.builders.text_file import WHOLE, Piece


class Rules(abc.ABC):
    """The steps, in their order: `read` each source, `check` it, make the `catalogue`, then the `events`.

    It is sent to workers: it holds what a family's config and its small files say, and no rows.
    """

    ROWS: ClassVar[str]
    """The table that `read` puts the good rows of events into; a `reason` in it is null in these."""
    ITEMS: ClassVar[str | None] = None
    """The same for sources of items."""
    OF_CATALOGUE: ClassVar[tuple[str, ...]] = ()
    """Tables that `catalogue` makes and `events` reads."""

    def prepare(self, connection: duckdb.DuckDBPyConnection) -> None:  # noqa: B027 - most need nothing
        """Gives a database what the SQL of the other steps needs."""

    @abc.abstractmethod
    def sources(self) -> Sequence[Source]:
        """The raw files that are read in pieces, those of events first of each kind, in the order of the report."""

    @abc.abstractmethod
    def read(self, connection: duckdb.DuckDBPyConnection, source: Source, piece: Piece, report: RowReport) -> Form:
        """Adds the rows of a piece to `ROWS` or `ITEMS`; malformed ones go to `report` and are left out.

        Raises:
          MalformedSourceError: the file cannot be read.
        """

    @abc.abstractmethod
    def check(self, source: Source, form: Form, report: RowReport) -> None:
        """Checks a source of which all pieces were read.

        Raises:
          MalformedSourceError: it cannot be used.
        """

    def for_catalogue(self) -> str | None:
        """SQL for rows of `ROWS`, not all, of which `catalogue` makes what it makes of all; None: it needs none."""
        return None

    @abc.abstractmethod
    def catalogue(self, connection: duckdb.DuckDBPyConnection, report: RowReport) -> dict[str, Any]:
        """Makes the tables `OF_CATALOGUE` of `ITEMS` and of rows of `ROWS`; returns the catalogue.

        That is its `FIELDS`, and `rating_names`; entry 0 of each is padding. More becomes metadata.
        """

    def user_id(self, connection: duckdb.DuckDBPyConnection) -> str:
        """SQL for the id of a row's user, by which users are ordered."""
        del connection
        return "user_id"

    @abc.abstractmethod
    def events(self, connection: duckdb.DuckDBPyConnection, report: RowReport) -> None:
        """Makes `events` (see `timelines.py`) of `ROWS` and the tables `OF_CATALOGUE`; counts rules about rows.

        A rule about several rows may only be about rows of one user.
        """


def load(
    rules: Rules, connection: duckdb.DuckDBPyConnection, report: RowReport, max_malformed: float = 0.0
) -> dict[str, Any]:
    """All steps over all rows: makes `events`, returns the catalogue.

    Args:
      rules: of the dataset.
      connection: see `timelines.open_database`.
      report: receives the counts.
      max_malformed: fraction of each file's rows that may be malformed.

    Raises:
      MalformedSourceError: a source cannot be used, or has more malformed rows.
    """
    rules.prepare(connection)
    for source in rules.sources():
        rules.check(source, rules.read(connection, source, WHOLE, report), report)
    report.check(max_malformed)
    catalogue = rules.catalogue(connection, report)
    rules.events(connection, report)
    return catalogue

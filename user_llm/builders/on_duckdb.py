"""A dataset on one machine, which is the default: all rows in one DuckDB database, out of core."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from user_llm.builders import timelines
from user_llm.builders.malformed import RowReport
from user_llm.builders.rules import Rules, load


class OnDuckDB:
    """Reads, groups and orders rows.

    Args:
      work: a folder for the database.
    """

    def __init__(self, work: Path):
        self._work = work

    def load(self, rules: Rules, report: RowReport, max_malformed: float) -> tuple[dict[str, Any], timelines.Measures]:
        """Takes all steps of `rules`; returns the catalogue, and what was counted of the timelines.

        Raises:
          MalformedSourceError: a source cannot be used, or has more malformed rows than `max_malformed` allows.
        """
        with contextlib.closing(timelines.open_database(self._work)) as connection:
            catalogue = load(rules, connection, report, max_malformed)
            return catalogue, timelines.measure(connection)

    def blocks(self) -> Iterator[timelines.Block]:
        """The timelines, in the order of the users; after `load`."""
        with contextlib.closing(timelines.open_database(self._work)) as connection:
            yield from timelines.read_blocks(connection)

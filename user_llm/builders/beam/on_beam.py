"""A dataset by many workers: the same rows, rules and order as on one machine (`on_duckdb.py`)."""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from user_llm.builders import timelines
from user_llm.builders.beam import steps
from user_llm.builders.json_lines import Form
from user_llm.builders.malformed import RowReport
from user_llm.builders.pieces import Cut, Source, cut_source
from user_llm.builders.rules import Rules
from user_llm.builders.sql import literal

_Element = TypeVar("_Element")
_Result = TypeVar("_Result")

Records = Iterator[tuple[int, dict[str, Any]]]

logger = logging.getLogger(__name__)


class Jobs(Protocol):
    """How work gets to workers. What they do is sent to them, as are the elements."""

    def each(self, does: str, do: Callable[[_Element], _Result], elements: Sequence[_Element]) -> list[_Result]:
        """`do` of each element, in the order of these; raises the first `UserError` that it raises."""

    def grouped(
        self,
        does: str,
        deal: Callable[[_Element], Iterable[tuple[int, bytes]]],
        gather: Callable[[int, Iterable[bytes]], _Result],
        elements: Sequence[_Element],
    ) -> dict[int, _Result]:
        """`gather` of each key and all values that `deal` gives with it, by key, ascending."""


class Sizes(NamedTuple):
    """How work is divided.

    Attributes:
      piece_bytes: of a raw file that a worker reads at once.
      group_rows: rows of a group of users, about.
      most_groups: of them there are not more groups.
      sample_every: of so many rows, one says how users are spread over groups.
    """

    piece_bytes: int = 1 << 25
    group_rows: int = 1 << 18
    most_groups: int = 1 << 10
    sample_every: int = 1 << 8


SIZES = Sizes()


class OnBeam:
    """Reads, groups and orders rows by `Jobs`.

    Args:
      work: a folder that all workers see under this path.
      jobs: see `Jobs`.
    """

    def __init__(self, work: Path, jobs: Jobs):
        self._work = work.absolute()
        self._jobs = jobs
        self._users: dict[int, int] = {}  # group → how many it has
        self._reviews = False

    def load(self, rules: Rules, report: RowReport, max_malformed: float) -> tuple[dict[str, Any], timelines.Measures]:
        """As `OnDuckDB.load`."""
        for folder in (steps.ROWS, steps.ITEMS, steps.FIRST, steps.CATALOGUE, steps.GROUPS):
            (self._work / folder).mkdir()
        tasks = self._cut(rules.sources())
        read = functools.partial(steps.read_piece, rules, self._work, SIZES.sample_every)
        parts = self._jobs.each("read", read, tasks)
        for part in parts:
            report.add(part.report)
        self._check(rules, tasks, parts, report)
        report.check(max_malformed)
        catalogue, user_id, bounds = self._catalogue(rules, parts, report)
        groups = self._jobs.grouped(
            "order",
            functools.partial(steps.deal, self._work, user_id, bounds),
            functools.partial(steps.order_group, rules, self._work),
            [task.number for task in tasks if not task.source.of_items],
        )
        for group in groups.values():
            report.add(group.report)
        measures = _together([group.measures for group in groups.values()])
        self._users = {number: len(group.measures.lengths) for number, group in groups.items()}
        self._reviews = measures.reviews
        return catalogue, measures

    def blocks(self) -> Iterator[timelines.Block]:
        """As `OnDuckDB.blocks`."""
        for group in self._users:
            yield from steps.group_blocks(self._work, group, reviews=self._reviews)

    def records(self) -> tuple[Callable[[steps.Keyed], Records], list[steps.Keyed]]:
        """What gives the (key, record) of each user of a group, and the groups to give it; after `load`."""
        firsts = np.cumsum([0, *self._users.values()]).tolist()[:-1]
        return functools.partial(steps.group_records, self._work, self._reviews), list(
            map(steps.Keyed, self._users, firsts)
        )

    def _cut(self, sources: Sequence[Source]) -> list[steps.Task]:
        folders = []
        for number in range(len(sources)):  # a file each: two may have one name
            folders.append(self._work / f"unpacked-{number}")
            folders[-1].mkdir()
        found = [source._replace(path=source.path.absolute()) for source in sources]
        cuts: list[Cut] = self._jobs.each(
            "cut", functools.partial(_cut_into, SIZES.piece_bytes), list(zip(found, folders, strict=True))
        )
        tasks: list[steps.Task] = []
        before = 0
        for source, cut in zip(sources, cuts, strict=True):
            for piece in cut.pieces:
                unpacked = source._replace(path=cut.path)
                tasks.append(steps.Task(len(tasks), unpacked, piece._replace(before=before)))
            before += cut.lines
        logger.info("%d files in %d pieces", len(sources), len(tasks))
        return tasks

    def _check(self, rules: Rules, tasks: Sequence[steps.Task], parts: Sequence[steps.Part], report: RowReport) -> None:
        forms: dict[str, Form] = {}
        for task, part in zip(tasks, parts, strict=True):
            forms[task.source.name] = forms.get(task.source.name, Form()).then(part.form)
        for source in rules.sources():
            rules.check(source, forms[source.name], report)

    def _catalogue(
        self, rules: Rules, parts: Sequence[steps.Part], report: RowReport
    ) -> tuple[dict[str, Any], str, list[steps.UserId]]:
        """Makes the catalogue, here: it fits one machine. Returns it, SQL for a user's id, and the groups' bounds."""
        with contextlib.closing(timelines.open_database(self._work)) as connection:
            rules.prepare(connection)
            for table, folder in ((rules.ITEMS, steps.ITEMS), (rules.ROWS, steps.FIRST)):
                if any((self._work / folder).iterdir()):
                    files = literal(os.fspath(self._work / folder / "*.parquet"))
                    connection.execute(f"CREATE TABLE {table} AS FROM read_parquet({files})")
            catalogue = rules.catalogue(connection, report)
            for table in rules.OF_CATALOGUE:
                path = self._work / steps.CATALOGUE / f"{table}.parquet"
                steps.write_rows(connection, f"FROM {table}", path)
            user_id = rules.user_id(connection)
            connection.register("sampled", pa.table({"user_id": [user for part in parts for user in part.users]}))
            users = [user for (user,) in connection.sql(f"SELECT {user_id} AS id FROM sampled ORDER BY id").fetchall()]
        groups = min(sum(part.rows for part in parts) // SIZES.group_rows + 1, SIZES.most_groups)
        return catalogue, user_id, sorted({users[len(users) * group // groups] for group in range(1, groups)})


def _cut_into(piece_bytes: int, element: tuple[Source, Path]) -> Cut:
    source, folder = element
    return cut_source(source, folder, piece_bytes)


def _together(groups: Sequence[timelines.Measures]) -> timelines.Measures:
    """The measures of all users from those of groups, of which each has its own."""
    return timelines.Measures(
        lengths=np.concatenate([np.zeros(0, np.int64), *(group.lengths for group in groups)]),
        items=functools.reduce(np.union1d, (group.items for group in groups), np.zeros(0, np.int32)),
        pairs=sum(group.pairs for group in groups),
        reviews=any(group.reviews for group in groups),
    )

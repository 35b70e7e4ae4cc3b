"""Which of the paper's orderings hold on our data: a paired bootstrap over the same users, in words."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from user_llm.evaluation.metrics import paired_bootstrap
from user_llm.launch.report.names import row_name
from user_llm.launch.report.paper import paper_figure
from user_llm.launch.report.results import Results, Sample
from user_llm.launch.sweeps import Cell

_NO_ORDER = ("1", "3", "baselines", "cold", "pretrained")  # counts, and what is not the paper's

HOLDS, REVERSED, NOISE = "holds", "is reversed", "stays open"
_CLOSE = 0.25  # of the interval's width


@dataclasses.dataclass(frozen=True)
class Ordering:
    """Two cells, of which the paper has the first ahead, and how far ours is (`low`, `high`: 95 %)."""

    ahead: Cell
    behind: Cell
    value: float
    low: float
    high: float
    users: int

    @property
    def verdict(self) -> str:
        """Whether ours has them in the same order, beyond chance."""
        return HOLDS if self.low > 0 else REVERSED if self.high < 0 else NOISE

    @property
    def clearness(self) -> float:
        """How far the difference is from 0, in widths of its interval."""
        return abs(self.value) / max(self.high - self.low, 1e-12)

    @property
    def is_close(self) -> bool:
        """Whether a bound is near 0, so that another seed may well change the verdict."""
        return 0 < min(abs(self.low), abs(self.high)) < _CLOSE * (self.high - self.low)

    @property
    def what(self) -> tuple:
        """What is compared, whichever table it stands in."""
        sides = [(tuple(run.name for run in cell.runs), cell.source) for cell in (self.ahead, self.behind)]
        return (self.ahead.metric, *sides)


def difference(sample: Sample, other: Sample) -> tuple[dict[str, float], int]:
    """Interval of the mean difference over the users that both have, and how many these are (0: no interval)."""
    users = np.intersect1d(sample.users, other.users)
    if not len(users):
        return {}, 0
    values, others = (each.values[np.isin(each.users, users)] for each in (sample, other))
    return paired_bootstrap(values, others), len(users)


def orderings(cells: Sequence[Cell], results: Results) -> list[Ordering]:
    """The paper's orderings among cells of the same users and metric, as far as our runs are finished."""
    found = []
    for group in comparable(cells):
        known = [
            (float(theirs), cell, figure.sample)
            for cell in group
            if (theirs := paper_figure(cell)) is not None and (figure := results.figure(cell)) and figure.sample
        ]
        for one, other in itertools.combinations(known, 2):
            if one[0] == other[0]:
                continue
            (_, ahead, sample), (_, behind, others) = (one, other) if one[0] > other[0] else (other, one)
            interval, users = difference(sample, others)
            if users:
                found.append(Ordering(ahead, behind, interval["value"], interval["low"], interval["high"], users))
    return found


def comparable(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells by row of the table; where columns differ in the length of history, by length too."""
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        if cell.metric in ("count", "tokens", "ratio"):
            continue
        length = next((word for word in cell.column.split() if word.startswith("Len")), "")
        groups.setdefault((cell.dataset, cell.task, cell.row, cell.metric, length), []).append(cell)
    return list(groups.values())


def best(cells: Sequence[Cell], results: Results) -> set[Cell]:
    """Cells that are ahead of every other one of their row, beyond chance."""
    found = set()
    for group in comparable(cells):
        figures = ((cell, results.figure(cell)) for cell in group)
        known = [(figure.value, cell, figure.sample) for cell, figure in figures if figure and figure.sample]
        if len(known) < 2:
            continue
        _, first, sample = max(known, key=lambda one: one[0])
        intervals = [difference(sample, others) for _, cell, others in known if cell is not first]
        if all(users and interval["low"] > 0 for interval, users in intervals):
            found.add(first)
    return found


def in_words(found: Sequence[Ordering], table: str) -> str:
    """One sentence: how many hold, are reversed and stay open, and the clearest of each; Markdown."""
    if table in _NO_ORDER:
        return ""
    if not found:
        return "None of the paper's orderings can be tested on these runs yet."
    parts = []
    for name, some in by_verdict(found).items():
        text = f"**{len(some)}** {_verb(name, len(some))}"
        if some:
            pick = (min if name == NOISE else max)(some, key=lambda one: one.clearness)
            text += f" ({'least clear' if name == NOISE else 'most clearly'} {_pair(pick)})"
        parts.append(text)
    orders = "orderings" if len(found) > 1 else "ordering"
    return f"Of {len(found)} {orders} of the paper that can be tested here {parts[0]}, {parts[1]} and {parts[2]}."


def by_verdict(found: Sequence[Ordering]) -> dict[str, list[Ordering]]:
    """Orderings that hold, that are reversed, that stay open."""
    return {name: [one for one in found if one.verdict == name] for name in (HOLDS, REVERSED, NOISE)}


def decided(found: Sequence[Ordering]) -> list[str]:
    """A line for each ordering that chance does not explain, those that hold first; Markdown."""
    verdicts = by_verdict(found)
    return [f"- {_line(one)}" for name in (HOLDS, REVERSED) for one in verdicts[name]]


def _verb(verdict: str, count: int) -> str:
    return verdict if count == 1 else {HOLDS: "hold", REVERSED: "are reversed", NOISE: "stay open"}[verdict]


def _pair(one: Ordering) -> str:
    first, second = (one.ahead, one.behind) if one.value >= 0 else (one.behind, one.ahead)
    return f"{row_name(one.ahead)}: {first.column} ahead of {second.column}"


def _line(one: Ordering) -> str:
    digits = 1 if one.ahead.metric == "rougeLsum" else 3
    first, second = (one.ahead, one.behind) if one.value >= 0 else (one.behind, one.ahead)
    bounds = sorted(abs(bound) for bound in (one.low, one.high))
    says = "as in the paper" if one.verdict == HOLDS else "the other way round than in the paper"
    return (
        f"{row_name(one.ahead)}: {first.column} is ahead of {second.column} by {abs(one.value):.{digits}f} "
        f"[{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}], {says} ({one.users:,} users)"
    )

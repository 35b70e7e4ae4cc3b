"""What a run of any size takes: lines of a start-up cost and a cost for each user, event or title.

A line names the rates it reads. `fit` finds them from runs of some sizes, `Line.predict` says what a run of another
size takes. A line is a plain sum, so that one that is wrong shows which term it lacks.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.optimize

Rates = Mapping[str, float]
Measured = Mapping[str, float]
"""Name of a line → what a run took, in the unit of the line."""

WITHIN = 0.2
"""A prediction holds where the measured value is at most this share above or below it."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much data there is.

    Attributes:
      users: U.
      events_per_user: E, the mean.
      items: I, titles of the catalogue.
    """

    users: int
    events_per_user: float
    items: int

    @property
    def events(self) -> float:
        """Of all users."""
        return self.users * self.events_per_user


@dataclasses.dataclass(frozen=True)
class Term:
    """A part of a line's sum: a rate times how much there is of what it is for.

    Attributes:
      rate: its name.
      amount: how much a size has of it; 1 for a start-up cost.
    """

    rate: str
    amount: Callable[[Size], float]


@dataclasses.dataclass(frozen=True)
class Line:
    """A cost.

    Attributes:
      name: of the line.
      unit: of its value: "core s" or "bytes".
      terms: whose sum it is.
      most: bytes or seconds that it never exceeds, whatever the size.
    """

    name: str
    unit: str
    terms: Sequence[Term]
    most: float = float("inf")

    @property
    def rates(self) -> tuple[str, ...]:
        """Names of the rates that it reads."""
        return tuple(term.rate for term in self.terms)

    def predict(self, rates: Rates, size: Size) -> float:
        """What a run of a size takes, in the line's unit.

        Raises:
          KeyError: a rate is not there.
        """
        return min(sum(rates[term.rate] * term.amount(size) for term in self.terms), self.most)

    def fit(self, sizes: Sequence[Size], values: Sequence[float]) -> dict[str, float]:
        """The rates with which the line comes closest to the measured values, none of them below 0.

        Every size counts alike: what is small is to be as near, in percent, as what is large.

        Raises:
          ValueError: there are more terms than sizes.
        """
        if len(sizes) < len(self.terms):
            raise ValueError(f"{self.name} has {len(self.terms)} terms: {len(sizes)} sizes cannot tell them apart.")
        amounts = np.array([[term.amount(size) for term in self.terms] for size in sizes], float)
        weights = 1 / np.maximum(np.asarray(values, float), 1e-9)
        scale = amounts.max(axis=0)  # amounts differ by a million, which costs the solver its digits
        found, _ = scipy.optimize.nnls(amounts / scale * weights[:, None], np.asarray(values) * weights)
        return dict(zip(self.rates, (found / scale).tolist(), strict=True))


def _once(size: Size) -> float:
    return 1.0


def _users(size: Size) -> float:
    return float(size.users)


def _events(size: Size) -> float:
    return size.events


def _line(name: str, unit: str, key: str, amount: Callable[[Size], float], of: str, most: float = float("inf")) -> Line:
    """A start-up cost, `<key>_start`, and so much each, `<key>_<of>`."""
    return Line(name, unit, (Term(f"{key}_start", _once), Term(f"{key}_{of}", amount)), most)


_IN_CACHE = 1 << 18
"""Events whose items and ratings, 5 bytes each, a core's own cache holds."""


def _misses(size: Size) -> float:
    """A window is read from anywhere in the columns: each time that these double, it misses one more cache.

    The rates of `results/data-2026-11-22.json` say so from a million to a billion events.
    """
    return size.users * math.log2(1 + size.events / _IN_CACHE)


DATABASE_LIMIT = 2e9
"""Bytes that DuckDB holds in a build at most (`timelines._MEMORY_LIMIT`)."""

LINES = (
    _line("build", "core s", "build", _events, "event"),
    _line("build's disk at its peak", "bytes", "build_disk", _events, "event"),
    _line("dataset on disk", "bytes", "dataset", _events, "event"),
    _line("build's memory at its peak", "bytes", "build_memory", _events, "event", most=DATABASE_LIMIT),
    _line("open the dataset, count its items", "core s", "count", _events, "event"),
    Line("find windows, read 100 a user", "core s", (Term("read_user", _users), Term("read_miss", _misses))),
    _line("train the encoder, a window a user", "core s", "encoder", _users, "user"),
    _line("rank every user's label", "core s", "evaluate", _users, "user"),
    _line("audit", "core s", "audit", _events, "event"),
    _line("memory of training, ranking and audit", "bytes", "run_memory", _users, "user"),
    _line("vectors of all users into a store", "core s", "embed", _users, "user"),
    _line("memory of making vectors", "bytes", "embed_memory", _users, "user"),
    _line("store on disk", "bytes", "store", _users, "user"),
    _line("trie of as many titles", "core s", "trie", _users, "title"),
    _line("trie in memory", "bytes", "trie_bytes", _users, "title"),
)
"""In the order of a run. Tries are of as many titles as there are users."""


def fit(sizes: Sequence[Size], runs: Sequence[Measured], lines: Sequence[Line] = LINES) -> dict[str, float]:
    """The rates of all lines, from what runs of some sizes took."""
    rates: dict[str, float] = {}
    for line in lines:
        rates |= line.fit(sizes, [run[line.name] for run in runs])
    return rates


@dataclasses.dataclass(frozen=True)
class Held:
    """A prediction beside what came of it.

    Attributes:
      line, unit: see `Line`.
      users: of the size.
      predicted, measured: in the unit.
    """

    line: str
    unit: str
    users: int
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.measured / self.predicted if self.predicted else float("inf")

    @property
    def within(self) -> bool:
        """Whether the measured value is within 20 % of the prediction."""
        return abs(self.ratio - 1) <= WITHIN


def predict(rates: Rates, size: Size, lines: Sequence[Line] = LINES) -> dict[str, float]:
    """What all lines say of a size, by name."""
    return {line.name: line.predict(rates, size) for line in lines}


def hold(predicted: Measured, measured: Measured, size: Size, lines: Sequence[Line] = LINES) -> list[Held]:
    """Predictions of a size beside what a run of it took."""
    return [Held(line.name, line.unit, size.users, predicted[line.name], measured[line.name]) for line in lines]

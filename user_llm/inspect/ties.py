"""What a run would have seen under other orders of events of equal time, of which the source's is but one."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from user_llm.data.timelines import TimelineTable
from user_llm.evaluation import leaks
from user_llm.evaluation.blocks import user_spans
from user_llm.evaluation.places import Places


class Rows:
    """Windows that are held as they are gathered: name → rows [n, …]."""

    def __init__(self, columns: Mapping[str, np.ndarray]):
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns["user"])

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The windows number `ids`."""
        return {name: rows[ids] for name, rows in self._columns.items()}


class OtherOrder(NamedTuple):
    """One order of equal times.

    Attributes:
      counts: int64 `[I+1]`, how often each item occurs outside of the events that are then held out.
      windows: those asked for, as `Windows.gather` would have them with times, ascending by label.
    """

    counts: np.ndarray
    windows: Rows


def other_orders(
    table: TimelineTable,
    held_out: Places,
    counts: np.ndarray,
    labels: np.ndarray,
    lengths: Mapping[str, int],
    seeds: Sequence[int],
) -> list[OtherOrder]:
    """Shuffles events of equal time within each timeline, once for each seed.

    Every user is shuffled for the counts, a block of whole timelines after the other, but only where an event that is
    held out, or a user who is asked for, has a part in it: nothing else shows. Holds some 80 bytes an event of a block
    (or of the longest timeline), a byte a user, and for each seed the counts and the windows asked for.

    Args:
      held_out: places of test and validation labels.
      counts: int64 `[I+1]`, how often each item occurs outside of them in the order that is.
      labels: int [n], places of the labels of the windows asked for.
      lengths: events in `history`, and in `seen` where that is wanted too.
    """
    labels = np.sort(labels)
    users = np.searchsorted(table.offsets, labels, side="right") - 1
    asked = np.zeros(table.num_users, bool)
    asked[users] = True
    generators = [np.random.default_rng(seed) for seed in seeds]
    counts_of = [counts.copy() for _ in seeds]
    columns_of = [_columns(users, lengths) for _ in seeds]
    for first, end in user_spans(table.offsets):
        start, stop = table.offsets[first], table.offsets[end]
        offsets = table.offsets[first : end + 1] - start
        block = {"item": table.item[start:stop], "rating": table.rating[start:stop]}
        held = held_out.mask(start, stop)
        wanted = held | np.repeat(asked[first:end], np.diff(offsets))
        places, run = leaks.tied_runs(table.timestamp[start:stop], offsets, wanted)
        rows = slice(*np.searchsorted(labels, (start, stop)))
        for generator, of_order, columns in zip(generators, counts_of, columns_of, strict=True):
            draws = generator.random(stop - start)[places]  # an event's draw does not depend on the blocks
            source = np.arange(stop - start)
            source[places] = places[np.argsort(run + draws / 2)]
            np.add.at(of_order, block["item"][held], 1)
            np.subtract.at(of_order, block["item"][source[held]], 1)
            for name, column in block.items():
                other, own = column[source], labels[rows] - start
                for group, length in lengths.items():
                    if f"{group}/{name}" in columns:
                        columns[f"{group}/{name}"][rows] = leaks.expected_history(other, offsets, own, length)
                ages = leaks.expected_ages(table.timestamp[start:stop], offsets, own, lengths["history"])
                columns["history/ago"][rows] = ages  # as they were: only what happened at a time changes
                columns[f"label/{name}"][rows] = other[own]
    return [OtherOrder(of_order, Rows(columns)) for of_order, columns in zip(counts_of, columns_of, strict=True)]


def _columns(users: np.ndarray, lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """What `Windows.gather` gives, of the windows of these users int [n], yet to be filled."""
    shapes: dict[str, tuple[int, ...]] = {f"label/{name}": () for name in ("item", "rating", "ago")}
    shapes |= {f"history/{name}": (lengths["history"],) for name in ("item", "rating", "ago")}
    shapes |= {"seen/item": (lengths["seen"],)} if "seen" in lengths else {}
    columns = {name: np.zeros((len(users), *shape), np.int32) for name, shape in shapes.items()}
    return {**columns, "user": users.astype(np.int32)}

"""Contenders measured in turns: what a shared machine does to one round, it does to the other's too."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.protocol import Contender, ContenderFailed, Unavailable


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contender of a table. `python` finds its environment, or raises `Unavailable`."""

    name: str
    python: Callable[[], Path]
    module: str
    options: dict[str, Any]


def measure_in_turns(
    reference_entry: Entry,
    rivals: Sequence[Entry],
    shared: Mapping[str, Any],
    setting: Mapping[str, Any],
    rounds: int,
) -> list[dict[str, Any]]:
    """A row for the reference and for every rival; each rival takes turns with the reference.

    Two at a time: dense logits of more would not fit in memory.

    Args:
      shared: options of all.
      setting: of the rows; `malloc` among it is a key of `MALLOC`.
      rounds: turns that each pair takes.
    """

    def start(entry: Entry) -> Contender:
        options = {**shared, **entry.options}
        return Contender(entry.python(), f"benchmarks.contenders.{entry.module}", options, setting["malloc"])

    rows, all_reference = [], []
    with start(reference_entry) as reference:
        for entry in rivals:
            try:
                with start(entry) as rival:
                    pairs = [(reference.round(), rival.round()) for _ in range(rounds)]
            except (Unavailable, ContenderFailed) as error:
                rows.append({"contender": entry.name, **setting, "skipped": str(error)})
            else:
                ours, theirs = map(list, zip(*pairs, strict=True))
                all_reference += ours
                rows.append(report.row(entry.name, setting, theirs, ours, rival))
            _progress(rows[-1])
        if not all_reference:
            all_reference = [reference.round() for _ in range(rounds)]
        first = report.row(reference_entry.name, setting, all_reference, all_reference, reference)
    return [first, *rows]


def _progress(row: dict[str, Any]) -> None:
    outcome = row.get("skipped") or f"{median(row['seconds']):.2f} s, ours/its {row['time_ratio']:.2f}"
    batch = f"batch {row['batch_size']}, " if "batch_size" in row else ""
    print(f"{batch}{row['malloc']}: {row['contender']}: {outcome}", file=sys.stderr, flush=True)

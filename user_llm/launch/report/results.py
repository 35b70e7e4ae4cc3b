"""What the runs of a sweep have left, and the figures of its cells."""

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from user_llm.config import ConfigError
from user_llm.evaluation.metrics import bootstrap_interval
from user_llm.launch.archive import ENVIRONMENT, METRICS, PREDICTIONS, RESULTS, anew, place_of
from user_llm.launch.kept import Place, kept
from user_llm.launch.resolve import resolve
from user_llm.launch.runner import read_records
from user_llm.launch.runs import EFFICIENCY, Run
from user_llm.launch.starts import read_starts
from user_llm.launch.sweeps import Cell

Found = TypeVar("Found")

_RECALL = re.compile(r"recall@(\d+)")
_APPROACHES = {"USER-LLM": "User-LLM", "+Perceiver": "User-LLM + Perceiver"}


@dataclasses.dataclass(frozen=True)
class Sample:
    """A metric of every test user: `users` `[n]`, sorted ids, and `values` float `[n]`, means over the seeds."""

    users: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of ours.

    Attributes:
        value: the mean over users and seeds, or a count.
        low, high: 95 % bootstrap interval over users; None for counts.
        seeds: values of the seeds.
        sample: what it is the mean of; None for counts.
    """

    value: float
    low: float | None = None
    high: float | None = None
    seeds: tuple[float, ...] = ()
    sample: Sample | None = None


class Results:
    """The finished runs of the folder `out`."""

    def __init__(self, out: Path):
        self.out = out

    def of(self, run: Run) -> dict[str, Any] | None:
        """What `results.json` of a run holds; None where it is not finished."""
        return self._read(run.name, RESULTS)

    def of_finished(self, run: Run) -> dict[str, Any]:
        """The same of a run that is finished."""
        return _there(self.of(run), self.out / run.name, RESULTS)

    def metrics(self, run: Run, stage: str, kind: str) -> list[dict[str, Any]]:
        """The lines of a stage's `metrics.jsonl` of a kind: `train` or `validation`."""
        place = place_of(self.out, run.name)
        lines = kept(place / stage / METRICS, _lines, anew(place)) if place else None
        return [line for line in lines or [] if line["kind"] == kind]

    @functools.cached_property
    def records(self) -> dict[str, dict[str, Any]]:
        """`runs.json`: run name → state, seconds and message; empty where another launcher ran them."""
        return read_records(self.out)

    @functools.cached_property
    def starts(self) -> list[dict[str, Any]]:
        """`starts.json`: what each call of the launcher took (`starts.py`)."""
        return read_starts(self.out)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - lives as long as a report
    def figure(self, cell: Cell) -> Figure | None:
        """What a cell has found so far: over the seeds that are finished; None without any."""
        finished = [run for run in cell.runs if self.of(run)]
        if not finished:
            return None
        if finished[0].program == EFFICIENCY:
            return Figure(_measured(self.of_finished(finished[0])["rows"], cell))
        if cell.metric == "count":
            return self._count(finished[0], cell)
        if cell.protocol:
            return self._of_protocol(finished[0], cell)
        samples = [sample for run in finished if (sample := self._sample(run.name, cell.source, cell.metric))]
        if not samples:
            return None
        users = functools.reduce(np.intersect1d, [sample.users for sample in samples])
        values = [sample.values[np.isin(sample.users, users)] for sample in samples]
        mean = np.mean(values, axis=0)
        interval = bootstrap_interval(mean)
        seeds = tuple(float(column.mean()) for column in values)
        return Figure(interval["value"], interval["low"], interval["high"], seeds, Sample(users, mean))

    def _count(self, run: Run, cell: Cell) -> Figure | None:
        """Table 1: windows of the dataset by the paper's rule, as the run noted them."""
        environment = self._read(run.name, ENVIRONMENT)
        history = resolve(run.config, run.values(Path())).data.history_length
        counts = environment["summary"]["windows"].get(str(history)) if environment else None
        return Figure(counts[cell.source]) if counts else None

    def _of_protocol(self, run: Run, cell: Cell) -> Figure | None:
        """A figure of another table than the first of a run's results, which keep no predictions of it."""
        rows = self.of_finished(run)["protocols"].get(cell.protocol, {}).get("rows", {})
        return Figure(**rows[cell.source][cell.metric]) if cell.source in rows else None

    @functools.lru_cache(maxsize=1024)  # noqa: B019
    def _sample(self, name: str, source: str, metric: str) -> Sample | None:
        users, rows = self._predictions(name)
        if source not in rows:
            return None
        if recall := _RECALL.fullmatch(metric):
            values = (rows[source] <= int(recall[1])).astype(np.float64)
        else:
            values = 100 * rows[source]  # as the paper prints ROUGE
        return Sample(users, values)

    @functools.lru_cache(maxsize=1024)  # noqa: B019
    def _predictions(self, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Test users, sorted, and row → rank (inf: not found) or ROUGE-Lsum of each."""
        place = place_of(self.out, name) or self.out / name
        return _there(kept(place / PREDICTIONS, _predictions, anew(place)), place, PREDICTIONS)

    @functools.lru_cache(maxsize=4096)  # noqa: B019
    def _read(self, name: str, file: str) -> dict[str, Any] | None:
        place = place_of(self.out, name)
        return kept(place / file, lambda text: {**json.loads(text)}, anew(place)) if place else None


def _there(found: Found | None, place: Place, file: str) -> Found:
    """What a file of a finished run holds, which every such run has."""
    if found is None:
        raise ConfigError(f"{place / file} is missing: {anew(place)}")
    return found


def _lines(text: str) -> list[dict[str, Any]]:
    """Of `metrics.jsonl`, whose last line may be half written."""
    whole = text[: text.rfind("\n") + 1]
    return [{"kind": line["kind"], **line} for line in map(json.loads, whole.splitlines())]


def _predictions(text: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    found = [json.loads(line) for line in text.splitlines()]
    users = np.array([line["user_id"] for line in found])
    order, rows = np.argsort(users), {}
    for row in found[0].get("ranks", found[0].get("written", {})):
        if "ranks" in found[0]:
            column = [np.inf if line["ranks"][row] is None else line["ranks"][row] for line in found]
        else:
            column = [line["written"][row]["rougeLsum"] for line in found]
        rows[row] = np.array(column, np.float64)[order]
    return users[order], rows


def _measured(rows: Sequence[dict[str, Any]], cell: Cell) -> float:
    """A figure of tables 3 and 6 from the rows of `user_llm.efficiency`."""

    def row(events: int, approach: str) -> dict[str, Any]:
        return next(row for row in rows if (row["events"], row["approach"]) == (events, approach))

    if cell.table == "6":
        return row(50, _APPROACHES[cell.source])["context_vectors"]
    text, ours = (row(int(cell.source), approach) for approach in ("TextPrompt", "User-LLM"))
    if cell.row == "FLOPs reduction":
        return text["flops_6nd"] / ours["flops_6nd"]
    return (text if cell.row.endswith("TP") else ours)["llm_tokens"]

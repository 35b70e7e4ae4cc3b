"""The results table of a sweep, from its runs' `results.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.sweeps import Run

MISSING = "-"


def table(runs: Sequence[Run], records: Mapping[str, Mapping[str, Any]], out: Path) -> str:
    """Markdown: for every group of test users the sweep's rows with mean ± half of the range over their seeds.

    Args:
        runs: of the sweep; a row whose runs are not finished has dashes, one with some of them the mean of those.
        records: run name → `seconds` (see `launch.local`).
        out: the sweep's folder.
    """
    finished = {run.name: _read(out / run.name) for run in runs if (out / run.name / "results.json").is_file()}
    if not finished:
        return "No run is finished.\n"
    rows = list(dict.fromkeys(row for run in runs for row in run.rows))
    groups = {name: group["users"] for results in finished.values() for name, group in results["protocols"].items()}
    text = []
    for group, users in groups.items():
        cells: dict[str, list[Mapping[str, float]]] = {row: [] for row in rows}
        for run in runs:
            found = finished.get(run.name, {}).get("protocols", {}).get(group, {}).get("rows", {})
            for row, theirs in run.rows.items():
                if theirs in found:
                    cells[row].append({metric: interval["value"] for metric, interval in found[theirs].items()})
        metrics = list(dict.fromkeys(metric for values in cells.values() for value in values for metric in value))
        text += [f"**{group}**, {users:,} test users", "", *_lines(cells, metrics), ""]
    device = next(iter(finished.values()))["provenance"]["device"]
    hours = sum(records[run.name]["seconds"] for run in runs) / 3600
    note = "Mean over the seeds ± half of their range; the number of seeds is in the last column."
    return "\n".join([*text, f"{note} {len(finished)} of {len(runs)} runs, {hours:.1f} h on {_device(device)}.", ""])


def _read(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "results.json").read_text(encoding="utf-8"))


def _lines(cells: Mapping[str, Sequence[Mapping[str, float]]], metrics: Sequence[str]) -> list[str]:
    lines = ["| " + " | ".join(["", *metrics, "seeds"]) + " |", "| --- " * (len(metrics) + 2) + "|"]
    for row, seeds in cells.items():
        values = [_cell([seed[metric] for seed in seeds]) for metric in metrics]
        lines.append("| " + " | ".join([row, *values, str(len(seeds))]) + " |")
    return lines


def _cell(values: Sequence[float]) -> str:
    if not values:
        return MISSING
    mean, half_range = sum(values) / len(values), (max(values) - min(values)) / 2
    return f"{mean:.3f} ±{half_range:.3f}" if len(values) > 1 else f"{mean:.3f}"


def _device(device: Mapping[str, Any]) -> str:
    return f"{device['count']} x {device['kind']}"

"""The paper's figures (`launch/paper_figures.csv`)."""

import csv
import functools
from pathlib import Path

from launch.sweeps import TABLES, Cell

FIGURES = Path(__file__).resolve().parents[1] / "paper_figures.csv"
KEY = ("table", "dataset", "task", "row", "column", "metric")


@functools.cache
def figures() -> dict[tuple[str, ...], str]:
    """(table, dataset, task, row, column, metric) → the figure as printed."""
    with FIGURES.open(encoding="utf-8", newline="") as file:
        return {tuple(line[name] for name in KEY): line["value"] for line in csv.DictReader(file)}


def paper_figure(cell: Cell) -> str | None:
    """What the paper has in a cell; None where it has nothing."""
    return figures().get((TABLES[cell.table].paper, cell.dataset, cell.task, cell.row, cell.column, cell.metric))

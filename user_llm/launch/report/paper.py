"""The paper's figures (`paper_figures.csv`), each as its own table prints it.

Tables of the paper differ here and there for one and the same run: on MovieLens' next item the dual encoder's User-LLM
has Recall@10 of 0.206 (Table 12, which repeats Table 2's dual encoder alone) and 0.218 (13); strategy `enc` has 0.053
and 0.052 at 1 (Table 11, which repeats Table 13's LoRA column, and 5); on Google's Full has 0.052 and 0.050 at 5 (2,
13); on Amazon's the random encoder has 0.026 and 0.023 at 1 (8, 13). Of Table 6 one figure, next item with a Perceiver
and strategy `enc`, is not readable in our copy.
"""

import csv
import functools
from pathlib import Path

from user_llm.launch.scales import STANDS_FOR
from user_llm.launch.sweeps import TABLES, Cell

FIGURES = Path(__file__).resolve().parents[1] / "paper_figures.csv"
KEY = ("table", "dataset", "task", "row", "column", "metric")


@functools.cache
def figures() -> dict[tuple[str, ...], str]:
    """(table, dataset, task, row, column, metric) → the figure as printed."""
    with FIGURES.open(encoding="utf-8", newline="") as file:
        return {tuple(line[name] for name in KEY): line["value"] for line in csv.DictReader(file)}


def paper_figure(cell: Cell) -> str | None:
    """What the paper has in a cell; None where it has nothing."""
    dataset = STANDS_FOR.get(cell.dataset, cell.dataset)
    return figures().get((TABLES[cell.table].paper, dataset, cell.task, cell.row, cell.column, cell.metric))

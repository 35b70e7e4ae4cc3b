"""Tables in Markdown, and the cells that several of them have."""

from collections.abc import Sequence
from typing import Any

# Headings of columns that stand on the left.
_TEXT = ("malloc", "contender", "library", "reader", "what", "files", "where", "load")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; numbers stand on the right. A row may end early."""
    marks = ["---" if heading in _TEXT else "---:" for heading in headings]
    filled = ([*cells, *[""] * (len(headings) - len(cells))] for cells in (headings, marks, *rows))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in filled)


def of_the_peak(row: dict[str, Any]) -> list[str]:
    """Cells: GFLOP needed, and the share of the peak."""
    return [f"{row['flops'] / 1e9:,.0f}", f"{row['share_of_peak']:.0%}"]


def number(value: float | None, digits: int) -> str:
    return "\N{EN DASH}" if value is None else f"{value:,.{digits}f}"


def skipped(row: dict[str, Any]) -> str:
    return f"skipped: {row['skipped'].replace('|', '/')}"

"""The report's plots, as SVG: Figure 3, what a prompt costs, learning curves."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")  # before pyplot: no window

import matplotlib.pyplot as plt
from matplotlib import rcsetup
from matplotlib.typing import RcKeyType

from user_llm.launch.report.paper import paper_figure
from user_llm.launch.report.results import Results
from user_llm.launch.scales import Scale
from user_llm.launch.sweeps import Cell

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A00")
_STYLE: dict[RcKeyType, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "user-llm",  # the same plot has the same bytes
    "axes.prop_cycle": rcsetup.cycler(color=_COLOURS),
}
_LINES = {
    ("Unfrozen", "USER-LLM"): dict(color=_COLOURS[0], linestyle="-", marker="o"),
    ("Unfrozen", "TP"): dict(color=_COLOURS[1], linestyle="-", marker="s"),
    ("Frozen", "USER-LLM"): dict(color=_COLOURS[0], linestyle=":", marker="o"),
    ("Frozen", "TP"): dict(color=_COLOURS[1], linestyle=":", marker="s"),
}
_COLUMN = re.compile(r"(\w+) Len(\d+) (.+)")

Curves = Mapping[str, Sequence[tuple[float, float]]]  # legend → points


def longer_histories(cells: Sequence[Cell], results: Results, scale: Scale) -> str | None:
    """Figure 3: Recall by the length of histories, ours above the paper's; None where nothing of it is run."""
    metrics = list(dict.fromkeys(cell.metric for cell in cells))
    if not any(results.figure(cell) for cell in cells):
        return None
    with plt.rc_context(_STYLE):
        figure, grid = plt.subplots(2, len(metrics), figsize=(3 * len(metrics), 5.4), squeeze=False)
        for column, metric in enumerate(metrics):
            for place, ((head, name), line) in enumerate(_LINES.items()):
                some = [
                    (int(match[2]), cell)
                    for cell in cells
                    if (match := _COLUMN.fullmatch(cell.column)) and (match[1], match[3]) == (head, name)
                    if cell.metric == metric
                ]
                label = f"{name}, {head.lower()} LLM"
                ours = [
                    (scale.lengths[length], found.value, found.low, found.high)
                    for length, cell in some
                    if (found := results.figure(cell)) and found.low is not None and found.high is not None
                ]
                errors = [
                    [value - low for _, value, low, _ in ours],
                    [high - value for _, value, _, high in ours],
                ]
                beside = (
                    (place - 1.5) * 0.012 * max(scale.lengths.values())
                )  # so that intervals do not cover each other
                x, y = [length + beside for length, *_ in ours], [value for _, value, *_ in ours]
                grid[0, column].errorbar(x, y, yerr=errors, capsize=2, label=label, markersize=4, **line)
                theirs = [(length, float(value)) for length, cell in some if (value := paper_figure(cell))]
                grid[1, column].plot(*zip(*theirs, strict=True), label=label, markersize=4, **line)
            for row, whose in enumerate(("ours", "the paper")):
                axes = grid[row, column]
                axes.set_title(f"{metric.replace('recall', 'Recall')}, {whose}", fontsize=9)
                axes.set_ylim(bottom=0)
                axes.set_xlabel("events of history")
                axes.set_xticks(list(scale.lengths.values() if row == 0 else scale.lengths))
        figure.legend(*grid[1, 0].get_legend_handles_labels(), loc="lower center", ncols=2)
        figure.tight_layout(rect=(0, 0.09, 1, 1))
        return _svg(figure)


def costs(rows: Sequence[Mapping[str, Any]]) -> str:
    """What answering costs by the length of histories: FLOPs and seconds of a prefill, from `user_llm.efficiency`."""
    panels = (("flops", 1e9, "GFLOP of a prefill (XLA)"), ("seconds", 1e-3, "milliseconds of a prefill"))
    with plt.rc_context(_STYLE):
        figure, grid = plt.subplots(1, 2, figsize=(7, 3.6))
        for axes, (measure, unit, title) in zip(grid, panels, strict=True):
            for approach in dict.fromkeys(row["approach"] for row in rows if "prefill" in row):
                points = sorted(
                    (row["events"], row["prefill"][measure] / unit) for row in rows if row["approach"] == approach
                )
                axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=approach)
            axes.set(yscale="log", title=title, xlabel="events of history")
            axes.set_xticks(sorted({row["events"] for row in rows}))
        handles = grid[0].get_legend_handles_labels()
        figure.legend(*handles, loc="lower center", ncols=2)
        figure.tight_layout(rect=(0, 0.16, 1, 1))
        return _svg(figure)


def learning_curves(panels: Mapping[str, Curves]) -> Iterator[tuple[str, str]]:
    """(title, SVG) of each panel that has curves, by training step."""
    for title, curves in panels.items():
        if not curves:
            continue
        with plt.rc_context(_STYLE):
            rows = -(-len(curves) // 2)
            figure, axes = plt.subplots(figsize=(7, 3 + 0.17 * rows))
            for index, (label, points) in enumerate(curves.items()):
                style = ("-", "--", ":", "-.")[index // len(_COLOURS) % 4]
                axes.plot(*zip(*points, strict=True), linestyle=style, linewidth=1, label=label)
            axes.set(title=title, xlabel="training step")
            figure.legend(*axes.get_legend_handles_labels(), loc="lower center", ncols=2, fontsize=7)
            figure.tight_layout(rect=(0, (0.17 * rows + 0.1) / (3 + 0.17 * rows), 1, 1))
            yield title, _svg(figure)


def _svg(figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()

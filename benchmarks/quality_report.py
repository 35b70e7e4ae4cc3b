"""Rows, tables and curves of part quality."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markdown import number, skipped, table
from user_llm.evaluation.metrics import bootstrap_interval, paired_bootstrap, ranking_metrics

PROTOCOLS = ("unseen", "all")  # items that the user has met are no answer; or are
SHOWN = ("recall@10", "ndcg@10")


def contender_row(
    name: str, runs: Sequence[Path], reference: Sequence[Path], thresholds: Sequence[float]
) -> dict[str, Any]:
    """A contender's result over its seeds.

    `metrics`: protocol/metric → the mean over users and seeds, with its 95 % interval over users (of their means over
    seeds), and each seed's. `ahead`: the reference less it, paired. `seconds`: each seed's until a threshold, `None`
    where it was not reached.

    Args:
      runs: the folder of each seed.
      reference: the ranks of each seed that ours has left.
      thresholds: of Recall@10 on the validation labels.
    """
    ranks, ours = (
        [dict(np.load(path)) for path in paths] for paths in ([run / "ranks.npz" for run in runs], reference)
    )
    metrics, ahead = {}, {}
    for protocol in PROTOCOLS:
        mine, theirs = (_by_user(of_seeds, protocol) for of_seeds in (ranks, ours))
        for metric in SHOWN:
            value = bootstrap_interval(mine[metric].mean(axis=0))
            metrics[f"{protocol}/{metric}"] = {**value, "seeds": mine[metric].mean(axis=1).tolist()}
            ahead[f"{protocol}/{metric}"] = paired_bootstrap(theirs[metric].mean(axis=0), mine[metric].mean(axis=0))
    curves = [[json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()] for run in runs]
    return {
        "contender": name,
        "users": len(ranks[0]["users"]),
        "metrics": metrics,
        "ahead": ahead,
        "seconds": {str(threshold): [_reached(curve, threshold) for curve in curves] for threshold in thresholds},
        "peak_gb": max(float(of["peak_bytes"]) for of in ranks) / 1e9,
        "curves": [[[row["seconds"], row["unseen/recall@10"]] for row in curve] for curve in curves],
    }


def render_quality(results: dict[str, list[dict[str, Any]]]) -> str:
    """The tables, Markdown."""
    return "\n\n".join(_table(name, rows) for name, rows in results.items())


def _table(name: str, rows: list[dict[str, Any]]) -> str:
    measured = [row for row in rows if "skipped" not in row]
    thresholds = list(measured[0]["seconds"]) if measured else []
    headings = ["contender", "Recall@10", "NDCG@10", "… seen items ranked too", "ours ahead in Recall@10"]
    headings += [*(f"s to R@10 {threshold}" for threshold in thresholds), "peak GB"]
    lines = [
        [row["contender"], skipped(row)]
        if "skipped" in row
        else [*_cells(row), *_seconds(row), f"{row['peak_gb']:.2f}"]
        for row in rows
    ]
    users = measured[0]["users"] if measured else 0
    return f"**{name}**, {users:,} users.\n\n{table(headings, lines)}"


def _cells(row: dict[str, Any]) -> list[str]:
    def cell(protocol: str, metric: str) -> str:
        found = row["metrics"][f"{protocol}/{metric}"]
        return f"{found['value']:.4f} ±{(found['high'] - found['low']) / 2:.4f}"

    ahead = row["ahead"]["unseen/recall@10"]
    both = " / ".join(cell("all", metric) for metric in SHOWN)
    return [
        row["contender"],
        *(cell("unseen", metric) for metric in SHOWN),
        both,
        f"{ahead['value']:+.4f} ({ahead['low']:+.4f} … {ahead['high']:+.4f})",
    ]


def _seconds(row: dict[str, Any]) -> list[str]:
    """The median over seeds, where all have reached it."""
    return [
        number(float(np.median(seconds)) if None not in seconds else None, 0) for seconds in row["seconds"].values()
    ]


def _by_user(of_seeds: Sequence[dict[str, np.ndarray]], protocol: str) -> dict[str, np.ndarray]:
    """Metric → float [seeds, users], users in ascending order."""
    found = [ranking_metrics(one[protocol][np.argsort(one["users"])]) for one in of_seeds]
    return {metric: np.stack([one[metric] for one in found]) for metric in SHOWN}


def _reached(curve: list[dict[str, float]], threshold: float) -> float | None:
    return next((row["seconds"] for row in curve if row["unseen/recall@10"] >= threshold), None)


def draw_curves(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Recall@10 on the validation labels over seconds of training, a panel a dataset, into an SVG."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(results), figsize=(5 * len(results), 3.6), squeeze=False)
    for panel, (name, rows) in zip(panels[0], results.items(), strict=True):
        for number_, row in enumerate(row for row in rows if "skipped" not in row):
            for seed, curve in enumerate(row["curves"]):
                seconds, recalls = np.array(curve).T
                panel.plot(seconds, recalls, color=f"C{number_}", label=row["contender"] if not seed else None, lw=1)
        panel.set(title=name, xlabel="seconds of training", ylabel="Recall@10, validation", xscale="log")
        panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)

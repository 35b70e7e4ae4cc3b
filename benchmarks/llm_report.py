"""Part llm's rows as tables."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.markdown import number, of_the_peak, skipped, table

PLAIN, FIRST_LAYER = "ours: plain, every=3", "ours: first_layer at two thirds"
TRIMMED, STATES = "ours: … + trimmed vocabulary", "ours: … + stored states"
BFLOAT16 = "ours: … + bfloat16"
TORCH, TORCH_FIRST_LAYER = "transformers: every=3", "transformers: first_layer at two thirds"
TORCH_BF16 = "transformers: … + bfloat16"
SEARCHES = ("plain", "trimmed vocabulary", "trimmed vocabulary + first_layer + stored states")

PEERS = {  # ours → what of PyTorch has its blocks before the same layers, and computes in the same dtype
    PLAIN: TORCH,
    FIRST_LAYER: TORCH_FIRST_LAYER,
    TRIMMED: TORCH_FIRST_LAYER,
    STATES: TORCH_FIRST_LAYER,
    BFLOAT16: TORCH_BF16,
}


def steps(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of training steps."""
    return [*measured.get("scratch", []), *measured.get("pretrained", [])]


def sections(measured: Mapping[str, Any]) -> list[str]:
    """Headings and tables."""
    costs = ("contender", "seconds", "examples/s", "peak GB", "… above imports", "GFLOP", "share of peak")
    size = f"{measured['llm']}, {measured['layers']} layers; two thirds are {measured['first_layer']}"
    parts = [
        f"**Language model from scratch**, a training step of 128: 3 layers of width 128, {measured['dataset']}.",
        table(costs, [_step(row) for row in measured["scratch"]]),
        f"**Frozen language model** ({size}), a training step of 32; blocks and a small encoder train.",
        table(
            (*costs, "tokens", "rows of V", "times as fast as transformers"),
            [_pretrained(row) for row in measured["pretrained"]],
        ),
        f"**Its beams**: 8 users, 10 beams, {measured['dataset']}.",
        table(
            ("contender", "seconds", "peak GB", "… above imports", "plain/its time"),
            [_search(row) for row in measured["beams"]],
        ),
    ]
    if counts := measured["differing"]:
        parts.append(
            f"Top-10 lists that differ between the plain and the trimmed model: {counts['lists']} of "
            f"{counts['users']} users' ({counts['sets']} in what they hold, the others in its order)."
        )
    return parts


def add_speedups(rows: Sequence[dict[str, Any]]) -> None:
    """Writes into our rows PyTorch's time over ours.

    Each was taken in turns with the same reference, so their ratios to it stand for their times.
    """
    ratios = {row["contender"]: row["time_ratio"] for row in rows if "skipped" not in row}
    for row in rows:
        name = row["contender"]
        if name in ratios and PEERS.get(name) in ratios:
            row["times_as_fast_as_transformers"] = round(ratios[name] / ratios[PEERS[name]], 3)


def _pretrained(row: dict[str, Any]) -> list[str]:
    cells = _step(row)
    if "skipped" in row:
        return cells
    speedup = number(row.get("times_as_fast_as_transformers"), 2)
    return [*cells, str(row["tokens"]), f"{row['vocabulary']:,}", speedup]


def _step(row: dict[str, Any]) -> list[str]:
    if "skipped" in row:
        return [row["contender"], skipped(row)]
    seconds = median(row["seconds"])
    return [
        row["contender"],
        f"{seconds:.2f}",
        f"{row['examples'] / seconds:,.1f}",
        f"{row['peak_gb']:.2f}",
        f"{row['peak_above_imports_gb']:.2f}",
        *of_the_peak(row),
    ]


def _search(row: dict[str, Any]) -> list[str]:
    if "skipped" in row:
        return [row["contender"], skipped(row)]
    return [
        row["contender"],
        f"{median(row['seconds']):.2f}",
        f"{row['peak_gb']:.2f}",
        f"{row['peak_above_imports_gb']:.2f}",
        f"{row['time_ratio']:.2f}",
    ]

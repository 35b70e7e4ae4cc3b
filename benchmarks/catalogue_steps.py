"""What a training step of the encoder costs with catalogues of a hundred thousand to ten million items.

By softmax (`encoder.softmax`) and by how the table of the items moves (`training.encoder.tables`). Each row is a
process of its own, which ends before the next begins: a table of ten million items is gigabytes.
"""

import dataclasses
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.markdown import skipped, table
from benchmarks.protocol import Contender, ContenderFailed, main_python
from benchmarks.workload import Workload

KINDS = (("full", "adam"), ("sampled", "adam"), ("sampled", "rowwise"))  # softmax, tables
_FULL = 100_000  # items; a full softmax over more takes minutes a step on two cores
_HEADINGS = ("items", "softmax", "tables", "ms a step", "GB by XLA")


def measure_catalogues(sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """A row a size and kind: `seconds` of each of the `rounds`, `bytes` of the step by XLA, or why it was `skipped`.

    The encoder is 2 layers of width 64; a batch is 128 histories of 50 events.
    """
    rows = []
    for items in sizes:
        for softmax, tables in KINDS:
            if softmax == "full" and items > _FULL:
                continue
            workload = Workload(128, num_items=items, num_layers=2, width=64, num_heads=4, hidden=256)
            row = {"items": items, "softmax": softmax, "tables": tables}
            options = {"workload": dataclasses.asdict(workload), "softmax": softmax, "tables": tables}
            try:
                with Contender(main_python(), "benchmarks.contenders.jax_catalogue", options, "tuned") as contender:
                    seconds = [contender.round()["seconds"] for _ in range(rounds)]
                    row |= {"seconds": seconds, "bytes": contender.facts["bytes"]}
            except ContenderFailed as error:
                row["skipped"] = str(error)
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `measure_catalogues` as a table."""
    return table(_HEADINGS, [[f"{row['items']:,}", row["softmax"], row["tables"], *_costs(row)] for row in rows])


def _costs(row: dict[str, Any]) -> list[str]:
    if "skipped" in row:
        return [skipped(row)]
    return [f"{median(row['seconds']) * 1e3:,.0f}", f"{row['bytes'] / 1e9:,.2f}"]

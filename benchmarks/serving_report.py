"""A server under load, as a table in Markdown and against the targets of the project."""

from collections.abc import Sequence
from typing import Any

from benchmarks.markdown import number, skipped, table

OURS = "ours: user-llm serve"
PEER = "the same server, transformers generate with prefix_allowed_tokens_fn, no user"
TEXT_PEER = "the same server, transformers generate with prefix_allowed_tokens_fn, user as text"

TIMES_A_PEER = 4.0  # as many requests a second, at so many clients
TIMES_AT = 8
TAIL = 3.0  # p99 over p50, below capacity

_COLUMNS = (
    *("contender", "load", "asked/s", "answered/s", "p50 ms", "p95 ms", "p99 ms", "mean batch"),
    *("429", "turned away", "failed", "peak MB", "client, share of a core"),
)


def sections(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A heading and a table for each run."""
    runs = dict.fromkeys(row["run"] for row in rows)
    return [
        part
        for run in runs
        for part in (
            f"**Serving** of `{run}`: POST /recommend with events, 10 titles by beams.",
            table(_COLUMNS, [_cells(row) for row in rows if row["run"] == run]),
        )
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    if "skipped" in row:
        return [row["contender"], skipped(row)]
    closed = row["load"] == "closed"
    load = f"{row['clients']} clients" if closed else f"{row['of_capacity']:.0%} of {row['capacity_per_second']:,.0f}/s"
    return [
        row["contender"],
        load,
        number(row.get("asked_per_second"), 1),
        number(row["answered_per_second"], 1),
        *(number(row.get(f"p{share}_ms"), 1) for share in (50, 95, 99)),
        number(row["mean_batch"], 1),
        f"{row['too_many']:.1%}",
        f"{row['turned_away']:.1%}",
        f"{row['failed']:,}",
        number(row["peak_mb"], 0),
        f"{row['client_core']:.0%}",
    ]


def targets(rows: Sequence[dict[str, Any]]) -> list[tuple[str, float, float, str]]:
    """What is told of each target, its value, the limit, and which side of it is meant; of rows that were measured."""
    found = []
    measured = [row for row in rows if "skipped" not in row]
    speed = {(row["run"], row["contender"]): row for row in measured if row.get("clients") == TIMES_AT}
    for (run, contender), row in speed.items():
        for name, reads in ((PEER, "without the user"), (TEXT_PEER, "with the user as text")):
            peer = speed.get((run, name))
            if contender == OURS and peer and peer["answered_per_second"]:
                times = row["answered_per_second"] / peer["answered_per_second"]
                label = f"{run}, {TIMES_AT} clients, requests a second ours / transformers {reads}"
                found.append((label, times, TIMES_A_PEER, "≥"))
    for row in measured:
        if row["load"] != "open":
            continue
        load = f"{row['run']}, at {row['of_capacity']:.0%} of capacity"
        p50, p99 = (row.get(name, float("inf")) for name in ("p50_ms", "p99_ms"))  # nothing answered: nothing met
        if row["of_capacity"] < 1:
            tail = p99 / p50 if p50 < float("inf") else p99
            found.append((f"{load}, p99 / p50", tail, TAIL, "≤"))
        else:
            label = f"{load}, p99 ms of what is answered, against a full queue and a batch"
            found.append((label, p99, row["longest_wait_ms"], "≤"))
            found.append((f"{load}, share turned away by 429", row["too_many"], 0.0, ">"))
        found.append((f"{load}, requests that failed", float(row["failed"]), 0.0, "≤"))
    return found

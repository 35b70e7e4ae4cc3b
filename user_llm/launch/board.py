"""The live table of a sweep."""

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.table import Table

_MOST = 8  # rows of jobs that wait, failed ones apart: the table must fit a terminal


def board(
    running: Mapping[str, tuple[float, str]], others: Mapping[str, tuple[str, str]], summary: Sequence[str]
) -> Table:
    """What runs, what failed, what comes next.

    Args:
        running: name → seconds so far, and how far it is.
        others: name → state ("" = waits) and message.
        summary: phrases for the line below; those of running jobs are left out.
    """
    phrases = [phrase for phrase in summary if not any(phrase.startswith(f"{name} for") for name in running)]
    counts = Counter(state or "waiting" for state, _ in others.values())
    states = [f"{count} {state}" for state, count in counts.items() if state == "waiting"]
    table = Table(caption=" · ".join([*phrases, *states]), caption_justify="left", expand=True)
    table.add_column("run", ratio=3, no_wrap=True)
    table.add_column("state", ratio=2, no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for name, (seconds, progress) in running.items():
        table.add_row(name, progress or "starts", duration(seconds), style="bold")
    waiting = [name for name, (state, _) in others.items() if not state]
    for name, (state, message) in others.items():
        if state in ("failed", "skipped", "stopped", "busy"):
            table.add_row(name, f"{state}: {message}", "", style="red" if state == "failed" else "yellow")
    for name in waiting[:_MOST]:
        table.add_row(name, "waits", "", style="dim")
    return table


def duration(seconds: float) -> str:
    """As a person says it: "75 s", "42 min", "3 h 5 min"."""
    minutes, hours = round(seconds / 60), int(seconds // 3600)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{hours} h {minutes % 60} min"

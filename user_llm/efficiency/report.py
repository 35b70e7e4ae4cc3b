"""The measurements as tables in Markdown, the paper's figures beside ours."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from user_llm.efficiency.programs import TEXT_PROMPT

# Events → how many times fewer FLOPs the paper has (its table 3, by 6ND).
PAPER_REDUCTION = {50: 21.9, 100: 42.2, 200: 78.1}

Row = Mapping[str, Any]


def render(results: Mapping[str, Any]) -> str:
    """All tables of a run, Markdown."""
    rows, users = results["rows"], results["users"]
    device, versions = results["device"], results["versions"]
    where = f"{device['kind']} ({device['platform']}), jax {versions['jax']}, config {results['config']}"
    flops = ["events", "approach", "LLM tokens", "context", "M parameters"]
    flops += ["6ND GFLOP", "ratio", "paper's ratio", "XLA GFLOP", "ratio"]
    return "\n\n".join(
        [
            f"{where}, {users} users at once. A ratio is TextPrompt's figure over the row's.",
            "**Tokens and FLOPs of training on one example** (paper tables 3 and 6)",
            _table(
                flops,
                (_training_flops(row, text, users) for row, text in _against_text(rows) if "train" in row),
            ),
            f"**Time** (medians; prefill and training step of {users} users, decoding of one token for each)",
            _table(
                ["events", "approach", "prefill ms", "ratio", "decode ms", "ratio", "train ms", "ratio"],
                (_times(row, text) for row, text in _against_text(rows)),
            ),
            "**XLA's FLOPs of a prefill and its peak memory** (with parameters; training also with optimizer state)",
            _table(
                ["events", "approach", "prefill GFLOP", "ratio", "prefill MiB", "ratio", "train MiB", "ratio"],
                (_memory(row, text) for row, text in _against_text(rows)),
            ),
        ]
    )


def _against_text(rows: Sequence[Row]) -> Iterable[tuple[Row, Row]]:
    """Each row with the TextPrompt of its events."""
    text = {row["events"]: row for row in rows if row["approach"] == TEXT_PROMPT}
    return ((row, text[row["events"]]) for row in rows)


def _training_flops(row: Row, text: Row, users: int) -> list[str]:
    paper = PAPER_REDUCTION[row["events"]]
    return [
        *_name(row),
        f"{row['llm_tokens']:,}",
        str(row["context_vectors"]),
        " + ".join(f"{name} {size / 1e6:.1f}" for name, size in row["parameters"].items()),
        f"{row['flops_6nd'] / 1e9:,.1f}",
        _ratio(text["flops_6nd"], row["flops_6nd"]),
        "" if row is text else f"{paper}",
        f"{row['train']['flops'] / users / 1e9:,.1f}",
        _ratio(text["train"]["flops"], row["train"]["flops"]),
    ]


def _times(row: Row, text: Row) -> list[str]:
    return _name(row) + _cells(row, text, [("prefill", "seconds"), ("decode", "seconds"), ("train", "seconds")])


def _memory(row: Row, text: Row) -> list[str]:
    return _name(row) + _cells(row, text, [("prefill", "flops"), ("prefill", "peak_mib"), ("train", "peak_mib")])


_UNITS = {"seconds": 1e-3, "flops": 1e9, "peak_mib": 1}


def _cells(row: Row, text: Row, measures: Iterable[tuple[str, str]]) -> list[str]:
    cells = []
    for phase, measure in measures:
        if phase not in row:
            cells += ["", ""]
            continue
        value = row[phase][measure]
        cells += [f"{value / _UNITS[measure]:,.1f}", _ratio(text[phase][measure], value)]
    return cells


def _name(row: Row) -> list[str]:
    return [str(row["events"]), row["approach"]]


def _ratio(text: float, value: float) -> str:
    return f"{text / value:,.1f}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    marks = ["---" if heading == "approach" else "---:" for heading in headings]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, marks, *rows))

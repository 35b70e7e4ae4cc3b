"""What a finished run says: a table in the terminal, `results.json` and `predictions.jsonl` in the workdir.

Both files hold no clock and no path, and replace their older selves in one step: the same run writes the same
bytes, and a killed one leaves no half file.
"""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from user_llm.evaluation.metrics import Interval
from user_llm.files import replacing

TOP = 10  # names of a prediction

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "seqio", "tensorflow-datasets", "sentencepiece", "user-llm")
_PLAIN_WIDTH = 120  # columns, where the output is no terminal


def print_table(rows: Mapping[str, Mapping[str, Interval]], *, title: str = "", console: Console | None = None) -> None:
    """Prints row name → `metrics.summarise(...)` as a table of `value ± half the width of its interval`.

    Metrics are those of the rows, the same for all; the best value of each is bold.
    """
    console = console or _console()
    sign = _plus_minus(console)
    table = Table(title=title or None, caption=f"{sign} half of the 95 % bootstrap interval over users")
    table.add_column("", overflow="fold")
    metrics = list(next(iter(rows.values())))
    for metric in metrics:
        table.add_column(metric, justify="right", no_wrap=True)
    best = {metric: max(row[metric]["value"] for row in rows.values()) for metric in metrics}
    for name, row in rows.items():
        cells = [_cell(row[metric], sign, bold=row[metric]["value"] == best[metric]) for metric in metrics]
        table.add_row(Text(name), *cells)
    console.print(table)


def print_comparisons(comparisons: Mapping[str, Mapping[str, Interval]], metric: str) -> None:
    """Prints how far one row is ahead of another on the same users, and whether more than chance would give."""
    for name, row in comparisons.items():
        value, low, high = (row[metric][key] for key in ("value", "low", "high"))
        verdict = "ahead" if low > 0 else "behind" if high < 0 else "within noise"
        print(f"  {metric}  {name}: {value:+.3f} [{low:+.3f}, {high:+.3f}]  {verdict}")


def print_samples(samples: Iterable[Mapping[str, str]], *, console: Console | None = None) -> None:
    """Prints written texts beside the true ones (paper table 15)."""
    table = Table(title="Samples", show_lines=True)
    columns = ("prompt", "truth", "personalised", "unpersonalised")
    for column in columns:
        table.add_column(column, overflow="fold", ratio=1)
    for sample in samples:
        table.add_row(*(Text(sample[column]) for column in columns))
    (console or _console()).print(table)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)


def _plus_minus(console: Console) -> str:
    return "±" if console.encoding.startswith("utf") else "+-"


def _cell(interval: Interval, sign: str, bold: bool) -> Text:
    half = (interval["high"] - interval["low"]) / 2
    return Text(f"{interval['value']:.3f} {sign}{half:.3f}", style="bold" if bold else "")


def provenance(dataset_fingerprint: str) -> dict[str, Any]:
    """What a number depends on besides the config: commit, data, library versions and device."""
    device = jax.devices()[0]
    return {
        "commit": _commit(),
        "dataset": dataset_fingerprint,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _LIBRARIES},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
    }


def _commit() -> str | None:
    """The commit of the clone this module runs from, "-dirty" with tracked changes; None outside of a clone.

    Installed, the module may lie in a .venv inside of another project's clone, whose git does not track it.
    """
    here = Path(__file__).resolve()
    tracked = ["git", "ls-files", "--error-unmatch", here.name]
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    answer = ""
    try:
        for command in (tracked, describe):
            answer = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.strip()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_results(
    workdir: Path, *, protocols: Mapping[str, Any], provenance: Mapping[str, Any], facts: Mapping[str, Any]
) -> Path:
    """Writes `results.json` and returns its path.

    Args:
      protocols: which test users → `users` (how many), `rows` (name → `metrics.summarise(...)`) and `comparisons`
        ("one row - another" → `metrics.compare(...)`).
      provenance: of `provenance`.
      facts: more on the run, such as `dropped_events` (of a text history, a test user on average) or `samples`.
    """
    results = {"protocols": protocols, **facts, "provenance": provenance}
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    return write_lines(Path(workdir) / "results.json", [text])


def ranking_predictions(
    *,
    user_ids: Iterable[str],
    labels: np.ndarray,
    ranks: Mapping[str, np.ndarray],
    answers: np.ndarray,
    names: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """Predictions of a task that answers names, a mapping a test user.

    It holds `user_id`, `label` (a name), `ranks` (row name → rank, null where the label was not found) and `top` (the
    LLM's best names, at most `TOP`).

    Args:
      user_ids: `[n]`, the source's ids.
      labels: int `[n]`, item or category ids.
      ranks: row name → float `[n]`.
      answers: int `[n, J]`, the LLM's, best first; 0 = none.
      names: name by id.
    """
    columns = {name: [int(rank) if np.isfinite(rank) else None for rank in row] for name, row in ranks.items()}
    for index, (user_id, label, best) in enumerate(
        zip(user_ids, labels.tolist(), answers[:, :TOP].tolist(), strict=True)
    ):
        yield {
            "user_id": user_id,
            "label": names[label],
            "ranks": {name: column[index] for name, column in columns.items()},
            "top": [names[answer] for answer in best if answer],
        }


def write_predictions(workdir: Path, predictions: Iterable[Mapping[str, Any]]) -> Path:
    """Writes `predictions.jsonl`, one line a test user, and returns its path."""
    lines = (json.dumps(prediction, ensure_ascii=False) for prediction in predictions)
    return write_lines(Path(workdir) / "predictions.jsonl", lines)


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    """Puts the lines into `path`, which holds either its old content or all of the new at any moment."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path

"""Datasets from raw files: whole processes, side by side with what people write in pandas for RecTools."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.cached_files import TARGET, made, say
from benchmarks.peers_environment import peers_python
from benchmarks.protocol import ContenderFailed, Unavailable, main_python
from benchmarks.raw_files import AMAZON, MOVIELENS, RawFormat, count_rows
from benchmarks.whole_process import run_whole

SECONDS = 600  # for one build
MILLION = 10**6
_LARGEST = ((MOVIELENS, 20 * MILLION), (AMAZON, MILLION))


def measure_building(sizes: list[int], data_dir: Path, raw: Path | None, rounds: int) -> list[dict[str, Any]]:
    """Every contender on every format, at those of the sizes that it is measured at.

    Args:
      sizes: rows.
      data_dir: where raw files are kept, and datasets are built and deleted again.
      raw: a folder with the files of MovieLens, in place of 20 million simulated ratings.
      rounds: of each, in turns.
    """
    rows = []
    for form, largest in _LARGEST:
        for size in [size for size in sizes if size in (MILLION, largest)]:
            given = raw if form is MOVIELENS and size == largest else None
            try:
                rows += build_in_turns(form, given or _raw_files(form, size, data_dir), data_dir, rounds)
            except (Unavailable, ContenderFailed) as error:
                rows.append({"contender": report.BUILD, "files": form.ratings, "rows": size, "skipped": str(error)})
    return rows


def build_in_turns(form: RawFormat, raw: Path, data_dir: Path, rounds: int) -> list[dict[str, Any]]:
    """Both contenders on the raw files in a folder; a row each."""
    ratings = raw / form.ratings
    size = count_rows(ratings)  # and so the page cache has the file
    contenders: dict[str, Callable[[], dict[str, float]]] = {
        report.BUILD: functools.partial(_build, form, raw, data_dir),
        report.PANDAS: functools.partial(_pandas, ratings),
    }
    rows = {name: {"contender": name, "files": form.ratings, "rows": size} for name in contenders}
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in [name for name in contenders if "skipped" not in rows[name]]:
            say(f"{form.ratings}, {size:,} rows: {name}")
            try:
                answers[name].append(contenders[name]())
            except (Unavailable, ContenderFailed) as error:
                rows[name]["skipped"] = str(error)
    for name in [name for name in contenders if "skipped" not in rows[name]]:
        seconds = [answer["seconds"] for answer in answers[name]]
        rows[name]["seconds"] = [round(value, 2) for value in seconds]
        rows[name]["rows_per_second"] = round(size / median(seconds))
        rows[name]["peak_mb"] = round(1e3 * max(answer["peak_gb"] for answer in answers[name]), 1)
    return list(rows.values())


def _raw_files(form: RawFormat, rows: int, data_dir: Path) -> Path:
    folder = data_dir / f"{form.dataset.partition('/')[0]}-{rows}"
    say(f"simulating {rows:,} ratings of {form.dataset}, unless they are in {data_dir} …")
    return made(folder, rows * form.bytes_per_row, "benchmarks.raw_files", form.dataset, TARGET, f"--rows={rows}")


def _build(form: RawFormat, raw: Path, data_dir: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=data_dir) as built:
        options = [form.dataset, f"--raw_path={raw}", f"--data_dir={built}"]
        return run_whole([str(main_python()), "-m", "user_llm.builders.build", *options], seconds=SECONDS)


def _pandas(ratings: Path) -> dict[str, float]:
    command = [str(peers_python()), "-m", "benchmarks.contenders.rectools_raw", str(ratings)]
    return run_whole(command, seconds=SECONDS)

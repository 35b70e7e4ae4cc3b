"""Training windows from disk: how fast a table opens and serves them, and what memory it holds, side by side."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.cached_files import TARGET, made, say, warm
from benchmarks.peers_environment import peers_python
from benchmarks.protocol import Contender, ContenderFailed, Unavailable, main_python
from user_llm.builders.built import COLUMNS

HISTORY_LENGTH, BATCH = 50, 8_192
SECONDS = 600  # for all that a contender does
_OUR_BYTES, _ARROW_BYTES = 13.4, 5.1  # an event, on disk


@dataclasses.dataclass(frozen=True)
class Reader:
    """A contender of the table.

    Attributes:
      name: in the table.
      python: finds its environment, or raises `Unavailable`.
      module: among the contenders.
      options: for it.
      reads: the files that a window is read from; none, when it serves no windows.
    """

    name: str
    python: Callable[[], Path]
    module: str
    options: dict[str, Any]
    reads: Sequence[Path] = ()


def our_reader(folder: Path, batches: int = 100) -> Reader:
    """Ours, over the dataset in a folder; a round is so many batches."""
    files = [folder / COLUMNS / f"{name}.npy" for name in ("item", "rating", "offsets")]
    return Reader(report.COLUMNS, main_python, "column_windows", {"folder": str(folder), "batches": batches}, files)


def measure_reading(events: int, data_dir: Path, malloc: str, rounds: int) -> list[dict[str, Any]]:
    """Every contender at so many events; the columns and the Arrow file are kept in `data_dir` for the next time.

    Args:
      events: of the table.
      data_dir: of the files.
      malloc: a key of `MALLOC`.
      rounds: of windows.
    """
    setting = {"malloc": malloc, "events": events}
    try:
        folder = data_dir / f"random-{events}"
        made(folder, int(events * _OUR_BYTES), "benchmarks.event_columns", TARGET, f"--events={events}")
        columns, arrow = folder / COLUMNS, data_dir / f"random-{events}.arrow"
        made(arrow, int(events * _ARROW_BYTES), "benchmarks.arrow_timelines", str(columns), TARGET)
    except (Unavailable, ContenderFailed) as error:
        names = (report.COLUMNS, report.ARROW, report.RECTOOLS_DATASET)
        return [{"contender": name, **setting, "skipped": str(error)} for name in names]
    readers = [
        our_reader(folder),
        Reader(report.ARROW, peers_python, "arrow_windows", {"file": str(arrow), "batches": 5}, [arrow]),
    ]
    frame = Reader(report.RECTOOLS_DATASET, peers_python, "rectools_columns", {"columns": str(columns)})
    # A data frame can take all the memory there is, and with it the page cache of the others: it comes after them.
    return [*read_in_turns(readers, setting, rounds), *read_in_turns([frame], setting, rounds)]


def read_in_turns(readers: Sequence[Reader], setting: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Opens one after the other, then reads in turns; a row each. `setting`: malloc and events."""
    for reader in readers:
        warm(*reader.reads)
    rows = {reader.name: {"contender": reader.name, **setting} for reader in readers}
    with contextlib.ExitStack() as stack:
        running: dict[str, Contender] = {}
        for reader in readers:
            say(f"{setting['events']:,} events, {setting['malloc']}: {reader.name} opens")
            with _skipped(rows[reader.name]):
                contender = stack.enter_context(_start(reader, setting["malloc"]))
                rows[reader.name] |= _opened(reader, contender, setting["events"])
                if reader.reads:
                    running[reader.name] = contender
        answers: dict[str, list[dict[str, float]]] = {name: [] for name in running}
        for _ in range(rounds + 1):
            for name in [name for name in running if "skipped" not in rows[name]]:
                with _skipped(rows[name]):
                    answers[name].append(running[name].round())
        for name in [name for name in running if "skipped" not in rows[name]]:
            rows[name] |= _read(answers[name])
    return list(rows.values())


def _start(reader: Reader, malloc: str) -> Contender:
    options = {**reader.options, "history_length": HISTORY_LENGTH, "batch_size": BATCH}
    return Contender(reader.python(), f"benchmarks.contenders.{reader.module}", options, malloc, seconds=SECONDS)


@contextlib.contextmanager
def _skipped(row: dict[str, Any]):
    """Notes in the row why a contender could not go on."""
    try:
        yield
    except (Unavailable, ContenderFailed) as error:
        row["skipped"] = str(error)
        say(f"{row['contender']}: skipped: {error}")


def _opened(reader: Reader, contender: Contender, events: int) -> dict[str, Any]:
    opened = last = contender.round()
    row = {"open_seconds": round(opened["seconds"], 3), "versions": contender.versions}
    if reader.reads:
        last = contender.round()
        row["index_seconds"] = round(last["seconds"], 3)
        row["windows"] = int(last["value"])
        row["bytes_per_event"] = round(sum(file.stat().st_size for file in reader.reads) / events, 2)
    row["peak_mb"] = _mb(last["peak_above_imports_gb"])
    row["private_open_mb"] = _mb(opened["private_above_imports_gb"])
    return row


def _read(answers: list[dict[str, float]]) -> dict[str, Any]:
    """Without the first round, in which every page of the files is new to the process."""
    speeds = [answer["value"] / answer["seconds"] for answer in answers[1:]]
    return {
        "private_reading_mb": _mb(answers[-1]["private_above_imports_gb"]),
        "windows_per_second": round(median(speeds)),
        "rounds": [round(speed) for speed in speeds],
    }


def _mb(gigabytes: float) -> float:
    return round(gigabytes * 1e3, 1)

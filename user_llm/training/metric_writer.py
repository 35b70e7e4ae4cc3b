"""Metrics of a stage: `metrics.jsonl`, one row a line, and TensorBoard events beside it."""

import json
from collections.abc import Mapping
from pathlib import Path

from user_llm.files import naming_full_disk, replacing
from user_llm.parallel.processes import is_lead


class MetricWriter:
    """Appends metrics; only the lead process writes.

    A resumed stage goes on behind its checkpoint: rows of steps that were lost are cut off, so that `metrics.jsonl`
    reads as one uninterrupted run. So do its events: a new file is written from the rows that are left, as the old one
    has steps that were lost, and lacks those that were still in a buffer.
    """

    def __init__(self, folder: Path, *, restored_step: int = 0, tensorboard: bool = True):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._evaluated: set[int] = set()
        self._file, self._events = None, None
        path = folder / "metrics.jsonl"
        kept = [row for row in _rows(path) if row["step"] <= restored_step]
        self._evaluated = {row["step"] for row in kept if row["kind"] == "validation"}
        if is_lead():
            with replacing(path) as partial:
                partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
            self._file = path.open("a")
            if tensorboard:
                # Its messages take a moment to import, and a finished run is loaded without them.
                from user_llm.training.event_file import EventFile

                for file in folder.glob("events.out.tfevents.*"):
                    file.unlink()
                self._events = EventFile(folder)
                for row in kept:
                    self._write_events(**row)

    def restored(self, step: int) -> bool:
        """Whether the validation of `step` is already written, by the run that is resumed."""
        return step in self._evaluated

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Writes the values of `kind` ("train" or "validation") after `step` steps."""
        with naming_full_disk(self._folder):
            if self._file is not None:
                print(json.dumps({"step": step, "kind": kind, **values}), file=self._file, flush=True)
            self._write_events(step, kind, **values)

    def _write_events(self, step: int, kind: str, **values: float) -> None:
        if self._events is not None:
            self._events.write(step, {f"{kind}/{name}": value for name, value in values.items()})

    def close(self) -> None:
        """Closes the files."""
        for file in (self._events, self._file):
            if file is not None:
                file.close()


def _rows(path: Path) -> list[dict]:
    """The complete rows of a metrics file; a process killed while writing leaves half a line at most."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows

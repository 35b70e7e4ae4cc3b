"""Rates that no whole run shows: the steps of Beam's workers and what they shuffle, the process that writes columns."""

import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.scale_model import Size
from benchmarks.scale_runs import DATASET, raw_files
from user_llm.builders.beam.on_beam import OnBeam
from user_llm.builders.columns import EventColumns
from user_llm.builders.families import builder_of
from user_llm.builders.malformed import RowReport


class Counted:
    """`on_beam.Jobs` in this process, one job after the other: what workers would do, without Beam's own work.

    Attributes:
      shuffled: bytes that `deal` has handed to `gather`.
    """

    def __init__(self):
        self.shuffled = 0

    def each(self, does, do, elements):
        """See `Jobs`."""
        return [do(element) for element in elements]

    def grouped(self, does, deal, gather, elements):
        """See `Jobs`."""
        groups: dict[int, list[bytes]] = defaultdict(list)
        for element in elements:
            for key, value in deal(element):
                groups[key].append(value)
                self.shuffled += len(value)
        return {key: gather(key, groups[key]) for key in sorted(groups)}


def measure_rates(size: Size, folder: Path) -> dict[str, float]:
    """Core seconds and bytes of an event, from a run of this size.

    Returns:
      beam_event: of the workers' steps, without what Beam adds.
      shuffle_event: bytes from worker to worker.
      work_event: bytes of `work/`, which all workers see.
      columns_event: of the one process that writes the columns.
    """
    with tempfile.TemporaryDirectory(dir=folder) as here:
        raw, work, columns = raw_files(size, Path(here) / "raw"), Path(here) / "work", Path(here) / "columns"
        work.mkdir()
        report, jobs = RowReport(), Counted()
        builder = builder_of(DATASET, raw_path=raw, data_dir=Path(here) / "data")
        rules = builder._rules({path.name: path for path in raw.iterdir()}, report)
        engine = OnBeam(work, jobs)
        begin = time.process_time()
        _, measures = engine.load(rules, report, 0.0)
        dealt = time.process_time() - begin
        begin = time.process_time()
        with EventColumns(columns, ratings=11, reviews=measures.reviews) as writer:
            for block in engine.blocks():
                writer.append(block)
        written = time.process_time() - begin
        events = int(np.sum(measures.lengths))
        of_work = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    costs = {"beam": dealt, "shuffle": jobs.shuffled, "work": of_work, "columns": written}
    return {f"{name}_event": cost / events for name, cost in costs.items()}

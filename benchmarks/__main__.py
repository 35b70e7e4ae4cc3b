"""Measures the data pipeline, the encoder's training step, the beam search and data on disk, side by side with peers.

    python -m benchmarks            # 2 cores: about 11 minutes, and what the data take
    python -m benchmarks --quick    # batch 128, tuned malloc, a million events
    python -m benchmarks --only=beams
    python -m benchmarks --only=data --data_sizes=1,20

Prints the tables of README.md and writes the numbers to `benchmarks/results/<date>.json`.
"""

import argparse
import dataclasses
import datetime
import importlib.util
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.beam_workload import BeamWorkload
from benchmarks.data_building import MILLION, measure_building
from benchmarks.data_reading import measure_reading
from benchmarks.peers_environment import peers_python
from benchmarks.protocol import MALLOC, Contender, ContenderFailed, Unavailable, main_python
from benchmarks.raw_files import MOVIELENS
from benchmarks.workload import Workload

PIPELINE_BATCH = 8_192
PARTS = ("pipeline", "encoder", "beams", "data")
DATA_SIZES = "1,20,200"  # millions of events


def torch_python() -> Path:
    if importlib.util.find_spec("torch") is None:
        raise Unavailable("PyTorch is not installed; the extra `test` has it on Python 3.11.")
    return main_python()


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contender of a table. `python` finds its environment, or raises `Unavailable`."""

    name: str
    python: Callable[[], Path]
    module: str
    options: dict[str, Any]


REFERENCE = Entry(report.REFERENCE, main_python, "jax_encoder", {"loss": "chunked", "microbatch": 32})
RIVALS = (
    Entry(report.CHUNKED, main_python, "jax_encoder", {"loss": "chunked", "microbatch": None}),
    Entry(report.DENSE, main_python, "jax_encoder", {"loss": "dense", "microbatch": None}),
    Entry(report.TORCH_EAGER, torch_python, "torch_encoder", {"loss": "dense", "compile": False}),
    Entry(report.TORCH_COMPILE, torch_python, "torch_encoder", {"loss": "dense", "compile": True}),
    Entry(report.TORCH_CHUNKED, torch_python, "torch_encoder", {"loss": "chunked", "compile": True}),
    Entry(report.RECTOOLS, peers_python, "rectools_encoder", {}),
)
BEAMS = Entry(report.BEAMS, main_python, "jax_beams", {})
BEAM_RIVALS = (Entry(report.TRANSFORMERS, torch_python, "transformers_beams", {}),)


def measure_pipeline(malloc: str, rounds: int) -> list[dict[str, Any]]:
    """Both roads, windows alone and answered prompts; a round takes about a second of each."""
    return [
        measure_road(road, reads, batches, malloc, rounds)
        for road, reads, batches in (
            (report.ARRAYS, "windows", 100),
            (report.SEQIO, "windows", 2),
            (report.ARRAYS, "prompts", 10),
            (report.SEQIO, "prompts", 1),
        )
    ]


def measure_road(road: str, reads: str, batches: int, malloc: str, rounds: int) -> dict[str, Any]:
    options = {"road": road, "reads": reads, "batch_size": PIPELINE_BATCH, "batches": batches}
    with Contender(main_python(), "benchmarks.contenders.data_pipeline", options, malloc) as pipeline:
        answers = [pipeline.round() for _ in range(rounds)]
    speeds = [answer["value"] / answer["seconds"] for answer in answers]
    return {
        "malloc": malloc,
        "road": road,
        "reads": reads,
        "batch_size": PIPELINE_BATCH,
        "examples_per_second": round(median(speeds)),
        "rounds": [round(speed) for speed in speeds],
        "versions": pipeline.versions,
    }


def measure_encoder(batch_size: int, malloc: str, rounds: int) -> list[dict[str, Any]]:
    setting = {"batch_size": batch_size, "malloc": malloc}
    return measure_in_turns(REFERENCE, RIVALS, Workload(batch_size), setting, rounds)


def measure_beams(malloc: str, rounds: int) -> list[dict[str, Any]]:
    return measure_in_turns(BEAMS, BEAM_RIVALS, BeamWorkload(), {"malloc": malloc}, rounds)


def measure_data(
    sizes: Sequence[int], data_dir: Path, raw: Path | None, mallocs: Sequence[str], rounds: int
) -> dict[str, list[dict[str, Any]]]:
    data_dir.mkdir(parents=True, exist_ok=True)
    return {
        "reading": [row for size in sizes for malloc in mallocs for row in measure_reading(size, data_dir, malloc, 5)],
        "building": measure_building(sizes, data_dir, raw, rounds),
    }


def measure_in_turns(
    reference_entry: Entry,
    rivals: Sequence[Entry],
    workload: Workload | BeamWorkload,
    setting: dict[str, Any],
    rounds: int,
) -> list[dict[str, Any]]:
    """Every rival in turns with the reference, two at a time: dense logits of more would not fit in memory."""

    def start(entry: Entry) -> Contender:
        options = {**entry.options, "workload": dataclasses.asdict(workload)}
        return Contender(entry.python(), f"benchmarks.contenders.{entry.module}", options, setting["malloc"])

    rows, all_reference = [], []
    with start(reference_entry) as reference:
        for entry in rivals:
            try:
                with start(entry) as rival:
                    pairs = [(reference.round(), rival.round()) for _ in range(rounds)]
            except (Unavailable, ContenderFailed) as error:
                rows.append({"contender": entry.name, **setting, "skipped": str(error)})
            else:
                ours, theirs = map(list, zip(*pairs, strict=True))
                all_reference += ours
                rows.append(report.row(entry.name, setting, theirs, ours, rival.versions))
            _progress(rows[-1])
        if not all_reference:
            all_reference = [reference.round() for _ in range(rounds)]
        first = report.row(reference_entry.name, setting, all_reference, all_reference, reference.versions)
    return [first, *rows]


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load_at_start": os.getloadavg()[0],
    }


def _progress(row: dict[str, Any]) -> None:
    outcome = row.get("skipped") or f"{median(row['seconds']):.2f} s, ours/its {row['time_ratio']:.2f}"
    batch = f"batch {row['batch_size']}, " if "batch_size" in row else ""
    print(f"{batch}{row['malloc']}: {row['contender']}: {outcome}", file=sys.stderr, flush=True)


def millions(text: str) -> list[int]:
    """Sizes from a flag; argparse reports a ValueError."""
    sizes = [int(size) for size in text.split(",")]
    if min(sizes) < 1:
        raise ValueError
    return [size * MILLION for size in sizes]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="batch 128, tuned malloc and a million events only, fewer rounds"
    )
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    today = datetime.date.today().isoformat()
    results_file = Path(__file__).parent / "results" / f"{today}.json"
    parser.add_argument("--output", type=Path, default=results_file, help="JSON file to write")
    parser.add_argument(
        "--data_sizes", type=millions, help=f"millions of events, as 1,20,200,1000; by default {DATA_SIZES}"
    )
    folder = Path(tempfile.gettempdir()) / "user_llm_benchmarks"
    parser.add_argument("--data_dir", type=Path, default=folder, help=f"keeps the files of part data ({folder})")
    parser.add_argument("--raw", type=Path, help="folder with MovieLens' movies.csv and ratings.csv, for 20 million")
    arguments = parser.parse_args()
    if arguments.raw and not (arguments.raw / MOVIELENS.ratings).is_file():
        parser.error(f"--raw: {arguments.raw} has no {MOVIELENS.ratings}")

    mallocs = ["tuned"] if arguments.quick else list(MALLOC)
    rounds = {128: 2} if arguments.quick else {128: 3, 512: 1}
    described = machine()
    parts = {
        "pipeline": lambda: [row for malloc in mallocs for row in measure_pipeline(malloc, 5)],
        "encoder": lambda: [
            row for size in rounds for malloc in mallocs for row in measure_encoder(size, malloc, rounds[size])
        ],
        "beams": lambda: [row for malloc in mallocs for row in measure_beams(malloc, 5)],
        "data": lambda: measure_data(
            arguments.data_sizes or millions("1" if arguments.quick else DATA_SIZES),
            arguments.data_dir.resolve(),
            arguments.raw and arguments.raw.resolve(),
            mallocs,
            1 if arguments.quick else 3,
        ),
    }
    measured = {name: parts[name]() for name in PARTS if arguments.only in (None, name)}
    results = {"date": today, "machine": described, "quick": arguments.quick, **measured}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    print(report.render(results))
    print(f"\nWritten to {arguments.output}", file=sys.stderr)


if __name__ == "__main__":
    main()

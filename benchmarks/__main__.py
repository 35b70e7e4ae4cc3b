"""Measures the data pipeline, the training steps, the beam search and data on disk, side by side with peers.

    python -m benchmarks
    python -m benchmarks --quick    # batch 128, tuned malloc, a million events
    python -m benchmarks --only=beams
    python -m benchmarks --only=data --data_sizes=1,20
    python -m benchmarks --only=llm --llm=gemma-3-270m-q4_k_m.gguf
    python -m benchmarks --only=quality --quality_dir=runs/quality --seeds=3
    python -m benchmarks --only=trie --titles=10000,1000000
    python -m benchmarks --only=store --run=runs/demo --store_users=1000000
    python -m benchmarks --only=serving --run=runs/demo
    python -m benchmarks --only=scale

Prints the tables of README.md and writes the numbers to `benchmarks/results/<date>.json`.
"""

import argparse
import ast
import dataclasses
import datetime
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.beam_workload import BeamWorkload
from benchmarks.data_building import MILLION, measure_building
from benchmarks.data_reading import measure_reading
from benchmarks.llm import measure_llm
from benchmarks.machine import machine, matmul_peaks
from benchmarks.peers_environment import peers_python
from benchmarks.protocol import MALLOC, Contender, main_python, torch_python
from benchmarks.quality import DATASETS, measure_quality
from benchmarks.quality_report import draw_curves
from benchmarks.raw_files import MOVIELENS
from benchmarks.scale import measure_scale
from benchmarks.serving import measure_serving
from benchmarks.store import measure_store
from benchmarks.trie import measure_trie
from benchmarks.turns import Entry, measure_in_turns
from benchmarks.workload import Workload

PIPELINE_BATCH = 8_192
PARTS = ("pipeline", "encoder", "beams", "llm", "data")
# Parts that run only where they are named: hours, of a run, many gigabytes.
NAMED = ("quality", "scale", "serving", "store", "trie")
OF_THE_PEAK = {"encoder", "llm"}  # parts whose rows say what share of the machine's peak they reach
DATA_SIZES = "1,20,200"  # millions of events
TITLES = "10000,100000,1000000,10000000"
SCALE_FIT, SCALE_SIZES = "5000,30000", "20000,60000,200000"  # users
SCALE_CATALOGUES = "100000,1000000,10000000"

REFERENCE = Entry(report.REFERENCE, main_python, "jax_encoder", {"loss": "chunked", "microbatch": 32})
RIVALS = (
    Entry(report.CHUNKED, main_python, "jax_encoder", {"loss": "chunked", "microbatch": None}),
    Entry(report.DENSE, main_python, "jax_encoder", {"loss": "dense", "microbatch": None}),
    Entry(report.TORCH_EAGER, torch_python, "torch_encoder", {"loss": "dense", "compile": False}),
    Entry(report.TORCH_COMPILE, torch_python, "torch_encoder", {"loss": "dense", "compile": True}),
    Entry(report.TORCH_CHUNKED, torch_python, "torch_encoder", {"loss": "chunked", "compile": True}),
    Entry(report.RECTOOLS, peers_python, "rectools_encoder", {}),
)
_BFLOAT16 = {"dtype": "bfloat16"}
SLOW_RIVALS = (  # left out by --quick
    Entry(report.BFLOAT16, main_python, "jax_encoder", {"loss": "chunked", "microbatch": 32, **_BFLOAT16}),
    Entry(report.TORCH_EAGER_BF16, torch_python, "torch_encoder", {"loss": "dense", "compile": False, **_BFLOAT16}),
    Entry(report.TORCH_COMPILE_BF16, torch_python, "torch_encoder", {"loss": "dense", "compile": True, **_BFLOAT16}),
    Entry(report.RECTOOLS_BF16, peers_python, "rectools_encoder", _BFLOAT16),
    Entry(report.RECTOOLS_WIDE, peers_python, "rectools_encoder", {"wide": True}),
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


def measure_encoder(rivals: Sequence[Entry], batch_size: int, malloc: str, rounds: int) -> list[dict[str, Any]]:
    setting = {"batch_size": batch_size, "malloc": malloc}
    shared = {"workload": dataclasses.asdict(Workload(batch_size))}
    return measure_in_turns(REFERENCE, rivals, shared, setting, rounds)


def measure_beams(malloc: str, rounds: int) -> list[dict[str, Any]]:
    shared = {"workload": dataclasses.asdict(BeamWorkload())}
    return measure_in_turns(BEAMS, BEAM_RIVALS, shared, {"malloc": malloc}, rounds)


def measure_data(
    sizes: Sequence[int], data_dir: Path, raw: Path | None, mallocs: Sequence[str], rounds: int
) -> dict[str, list[dict[str, Any]]]:
    data_dir.mkdir(parents=True, exist_ok=True)
    return {
        "reading": [row for size in sizes for malloc in mallocs for row in measure_reading(size, data_dir, malloc, 5)],
        "building": measure_building(sizes, data_dir, raw, rounds),
    }


def millions(text: str) -> list[int]:
    """Sizes from a flag; argparse reports a ValueError."""
    sizes = [int(size) for size in text.split(",")]
    if min(sizes) < 1:
        raise ValueError
    return [size * MILLION for size in sizes]


def numbers(text: str) -> list[int]:
    """Numbers from a flag; argparse reports a ValueError."""
    return [int(float(number)) for number in text.split(",")]


def override(text: str) -> tuple[str, Any]:
    """A key of the config and its value, a Python literal or a text."""
    key, _, value = text.partition("=")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="batch 128, tuned malloc and a million events only, fewer rounds"
    )
    parser.add_argument("--only", choices=(*PARTS, *NAMED), help="one part of it")
    today = datetime.date.today().isoformat()
    results_file = Path(__file__).parent / "results" / f"{today}.json"
    parser.add_argument("--output", type=Path, default=results_file, help="JSON file to write")
    parser.add_argument(
        "--data_sizes", type=millions, help=f"millions of events, as 1,20,200,1000; by default {DATA_SIZES}"
    )
    folder = Path(tempfile.gettempdir()) / "user_llm_benchmarks"
    parser.add_argument("--data_dir", type=Path, default=folder, help=f"keeps the files of part data ({folder})")
    parser.add_argument("--raw", type=Path, help="folder with MovieLens' movies.csv and ratings.csv, for 20 million")
    parser.add_argument(
        "--llm", type=Path, help="GGUF file or Hugging Face folder for part llm; by default a random one"
    )
    parser.add_argument(
        "--quality_dir", type=Path, help="part quality: keeps what is finished, so that it goes on there"
    )
    parser.add_argument("--seeds", type=int, default=3, help="part quality: trainings of each contender")
    parser.add_argument("--rival_seeds", type=int, help="part quality: trainings of RecTools' models, where fewer")
    parser.add_argument("--hours", type=float, default=6.0, help="part quality: of a rival's training, at most")
    parser.add_argument("--datasets", default=",".join(DATASETS), help="part quality: some of them, with commas")
    parser.add_argument("--override", action="append", default=[], help="part quality: KEY=VALUE of the configs of all")
    parser.add_argument("--titles", type=numbers, default=numbers(TITLES), help=f"part trie: how many ({TITLES})")
    parser.add_argument("--run", type=Path, help="parts serving and store: folder of a finished run")
    parser.add_argument(
        "--seconds", type=float, help="part serving: of a row (15, with --quick 4); a batch must fit in several times"
    )
    parser.add_argument("--store_users", type=int, default=100_000, help="part store: users that are written (100000)")
    parser.add_argument("--store", help="part store: a server, as redis://localhost:6379/9; by default a folder")
    parser.add_argument("--scale_fit", type=numbers, default=numbers(SCALE_FIT),
                        help=f"part scale: users of the runs that rates are of ({SCALE_FIT})")  # fmt: skip
    parser.add_argument("--scale_sizes", type=numbers, default=numbers(SCALE_SIZES),
                        help=f"part scale: users of the runs that are predicted ({SCALE_SIZES})")  # fmt: skip
    parser.add_argument("--scale_catalogues", type=numbers, default=numbers(SCALE_CATALOGUES),
                        help=f"part scale: catalogues of the encoder's steps ({SCALE_CATALOGUES})")  # fmt: skip
    arguments = parser.parse_args()
    if wrong := set(arguments.scale_fit) & set(arguments.scale_sizes):
        parser.error(f"--scale_sizes: {min(wrong)} is among --scale_fit: a prediction is tested at other sizes")
    if len(set(arguments.scale_fit)) < 2:
        parser.error("--scale_fit: expected two numbers of users or more, as 5000,30000: a start-up cost and a rate")
    if arguments.only == "quality" and not arguments.quality_dir:
        parser.error("--only=quality takes hours: name a folder that keeps what is finished with --quality_dir=")
    if arguments.only in ("serving", "store") and not arguments.run:
        parser.error(f"--only={arguments.only} measures a finished run: name its folder with --run=")
    if arguments.raw and not (arguments.raw / MOVIELENS.ratings).is_file():
        parser.error(f"--raw: {arguments.raw} has no {MOVIELENS.ratings}")

    mallocs = ["tuned"] if arguments.quick else list(MALLOC)
    rounds = {128: 2} if arguments.quick else {128: 3, 512: 1}
    rivals = RIVALS if arguments.quick else (*RIVALS, *SLOW_RIVALS)
    chosen = [arguments.only] if arguments.only else PARTS
    described = machine()
    if OF_THE_PEAK & set(chosen):
        described["matmul_gflops"] = matmul_peaks()
    parts = {
        "pipeline": lambda: [row for malloc in mallocs for row in measure_pipeline(malloc, 5)],
        "encoder": lambda: [
            row for size in rounds for malloc in mallocs for row in measure_encoder(rivals, size, malloc, rounds[size])
        ],
        "beams": lambda: [row for malloc in mallocs for row in measure_beams(malloc, 5)],
        "llm": lambda: measure_llm(
            arguments.llm and arguments.llm.resolve(), arguments.data_dir.resolve(), rounds=1 if arguments.quick else 3
        ),
        "data": lambda: measure_data(
            arguments.data_sizes or millions("1" if arguments.quick else DATA_SIZES),
            arguments.data_dir.resolve(),
            arguments.raw and arguments.raw.resolve(),
            mallocs,
            1 if arguments.quick else 3,
        ),
    }
    parts["quality"] = lambda: measure_quality(
        arguments.quality_dir.resolve(),
        dict(map(override, arguments.override)),
        (arguments.seeds, arguments.rival_seeds or arguments.seeds),
        {name: DATASETS[name] for name in arguments.datasets.split(",")},
        arguments.hours,
    )
    parts["store"] = lambda: [
        measure_store(arguments.run.resolve(), arguments.store_users, arguments.store, arguments.data_dir.resolve())
    ]
    parts["serving"] = lambda: measure_serving(
        arguments.run.resolve(), arguments.seconds or (4.0 if arguments.quick else 15.0)
    )
    parts["scale"] = lambda: measure_scale(
        arguments.scale_fit,
        arguments.scale_sizes,
        arguments.scale_catalogues,
        arguments.data_dir.resolve() / "scale",
    )
    parts["trie"] = lambda: measure_trie(arguments.titles, 3 if arguments.quick else 9)
    measured = {name: parts[name]() for name in chosen}
    results = {"date": today, "machine": described, "quick": arguments.quick, **measured}
    report.add_shares(results)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    print(report.render(results))
    if "quality" in results:
        draw_curves(results["quality"], arguments.output.with_suffix(".svg"))
    print(f"\nWritten to {arguments.output}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""What a row costs by each engine of `user-llm build`, in seconds of a core: whole processes with their workers.

python -m benchmarks.beam_building --rows 1000000 5000000 20000000

Needs `make beam`; both engines run in its environment. Raw files are simulated, in MovieLens' format, and kept in
--data_dir for the next time. The last lines are the cost of a row between the smallest and the largest size, in which
what starting costs cancels out, and what a billion rows take by it.
"""

import argparse
import resource
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.protocol import REPOSITORY
from benchmarks.raw_files import MOVIELENS, count_rows

_PYTHON = REPOSITORY / ".venv-beam" / "bin" / "python"
_WORKERS = "runner=DirectRunner,direct_running_mode=multi_processing,direct_num_workers="


def build(raw: Path, flags: list[str]) -> tuple[float, float]:
    """Seconds on the clock, and of all cores, that a build takes, its workers included."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=raw.parent) as built:
        command = [str(_PYTHON), "-m", "user_llm.builders.build", MOVIELENS.dataset]
        subprocess.run(
            [*command, f"--raw_path={raw}", f"--data_dir={built}", *flags],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begin, cores


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.beam_building",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10**6, 5 * 10**6, 20 * 10**6])
    parser.add_argument("--workers", type=int, default=1, help="of Beam")
    parser.add_argument("--data_dir", type=Path, default=Path(tempfile.gettempdir()) / "user_llm_benchmarks")
    arguments = parser.parse_args()
    engines = {"duckdb": [], "beam": ["--engine=beam", f"--beam_options={_WORKERS}{arguments.workers}"]}
    costs: dict[str, list[tuple[int, float]]] = {engine: [] for engine in engines}
    print("| rows | engine | s | core s | thousand rows/s a core |\n| --: | --- | --: | --: | --: |")
    for rows in sorted(arguments.rows):
        raw = arguments.data_dir / f"movielens-beam-{rows}"
        if not (raw / MOVIELENS.ratings).exists():
            raw.mkdir(parents=True, exist_ok=True)
            MOVIELENS.write(MOVIELENS.config(rows), raw)
        count = count_rows(raw / MOVIELENS.ratings)
        for engine, flags in engines.items():
            seconds, cores = build(raw, flags)
            costs[engine].append((count, cores))
            print(f"| {count:,} | {engine} | {seconds:.1f} | {cores:.1f} | {count / cores / 1e3:,.0f} |", flush=True)
    for engine, points in costs.items():
        (few, least), (many, most) = points[0], points[-1]
        if many > few:
            cost = (most - least) / (many - few)
            print(f"{engine}: {1e6 * cost:.2f} µs of a core a row, 10^9 rows {1e9 * cost / 3600:.1f} core hours")


if __name__ == "__main__":
    main()

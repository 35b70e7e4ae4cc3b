"""Runs tables of the paper on this machine, one process a run:

    python -m launch.local --tables=2,5,fig3 --scale=laptop --out=runs/laptop [--datasets=movielens] [--seeds=0,1] \
        [--jobs=2] [--raw movielens=ml-latest-small.zip] [--set training.user_llm.steps=600 ...]

Runs that several tables share happen once, and an encoder pretrained once feeds every run that reads it. The same
command again goes on where it was stopped: finished runs are skipped, broken ones resume, failed ones are tried
again. A run that fails stops only those that need it. Ctrl-C lets running processes save a checkpoint first. More
tables, datasets or seeds with the same --out join those that are there.

At the end `report.md` and `report.html` are written there (also by `python -m launch.report --out=…`, at any time);
`runs.json` says what became of each run, and `logs/` what it printed. Exit status: 0 all finished, 1 some failed,
2 nothing was started, 130 stopped.
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from launch.plan import Plan
from launch.report import write_report
from launch.resolve import Overrides, parse_setting
from launch.runner import Job, Runner
from launch.runs import Run
from launch.scales import DATASETS, SCALES
from launch.sweeps import TABLES
from user_llm.config import ConfigError
from user_llm.files import replacing

PYTHON = (sys.executable,)


def places_of(run: Run, raw: dict[str, str], data_dir: str) -> Overrides:
    """The keys that say where a run's data lie on this machine."""
    places = [("data.raw_path", raw.get(run.dataset, "")), ("data.data_dir", data_dir if run.dataset else "")]
    return tuple((key, value) for key, value in places if value)


def write_commands(runs: Sequence[Run], out: Path, raw: dict[str, str], data_dir: str) -> list[Path]:
    """Writes the arguments of every `user_llm.main`, a line each, for a cluster: `wave1.txt`, and `wave2.txt` with
    those that read what the first leaves."""
    waves: list[list[str]] = [[], []]
    for run in runs:
        module, *arguments = run.arguments(out, places_of(run, raw, data_dir))[1:]
        if module == "user_llm.main":
            waves[bool(run.needs)].append(shlex.join(arguments))
    paths = []
    for number, lines in enumerate(waves, start=1):
        with replacing(out / f"wave{number}.txt") as partial:
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        paths.append(out / f"wave{number}.txt")
    return paths


def _names(known: Sequence[str], what: str):
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(known) if text == "all" else tuple(dict.fromkeys(text.split(",")))
        wrong = [name for name in names if name not in known]
        if wrong:
            raise argparse.ArgumentTypeError(f"no {what} {', '.join(wrong)}: expected all, or some of {','.join(known)}")
        return names

    return parse


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(seed) for seed in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError("expected whole numbers with commas between them, as 0,1") from None


def _raw(text: str) -> tuple[str, str]:
    dataset, equals, path = text.partition("=")
    if not equals or dataset not in DATASETS:
        raise argparse.ArgumentTypeError(f"expected DATASET=PATH with a dataset of {','.join(DATASETS)}")
    if not Path(path).exists():
        raise argparse.ArgumentTypeError(f"{path}: no such file or folder")
    return dataset, path


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch.local", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tables", required=True, type=_names(tuple(TABLES), "table"), help=f"all, or some of {','.join(TABLES)}")
    add("--scale", required=True, choices=SCALES, help="the paper's datasets and sizes, or small ones")
    add("--out", required=True, type=Path, help="folder of the sweep")
    add("--datasets", default=DATASETS, type=_names(DATASETS, "dataset"), help=f"some of {','.join(DATASETS)} (all)")
    add("--seeds", default=(0,), type=_seeds, help="comma between them (0)")
    add("--jobs", default=1, type=int, help="processes at a time (1)")
    add("--raw", nargs="+", action="extend", type=_raw, default=[], metavar="DATASET=PATH", help="files you have")
    add("--data_dir", default="", help="where built datasets live (the configs')")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="config keys of every run")
    add("--write_commands", action="store_true", help="write the runs' arguments for a cluster, and start nothing")
    arguments = parser.parse_args(argv)
    if arguments.jobs < 1:
        parser.error("--jobs must be at least 1")
    return arguments


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The sweep that the command line asks for.

    Raises:
      ConfigError: a setting that is no key of the configs, or one that the tables vary themselves.
    """
    file = next(iter(SCALES[arguments.scale].settings.values())).config
    settings = tuple(parse_setting(setting, file) for setting in arguments.set)
    borrowed = tuple(setting for setting in settings if setting[0] == "llm.checkpoint")
    bare = Plan(arguments.scale, arguments.seeds, borrowed, arguments.tables, arguments.datasets)
    own = {key for run in bare.runs() for key, _ in run.values(Path())} - {key for key, _ in borrowed}
    for key, _ in settings:
        if key in own:
            raise ConfigError(f"--set {key}: the tables give {key} its values; leave it out")
    return Plan(arguments.scale, arguments.seeds, settings, arguments.tables, arguments.datasets)


def main(argv: Sequence[str] | None = None, python: Sequence[str] = PYTHON) -> int:
    """Runs the tables that `argv` names and returns the exit status."""
    arguments = _arguments(argv)
    console = Console(highlight=False)
    out, raw = arguments.out, dict(arguments.raw)
    try:
        plan = plan_of(arguments)
        plan.save(out)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    runs = plan.runs()
    if arguments.write_commands:
        for path in write_commands(runs, out, raw, arguments.data_dir):
            print(path)
        return 0
    jobs = [
        Job(
            run.name,
            [*python, *run.arguments(out, places_of(run, raw, arguments.data_dir))],
            [other.name for other in run.needs],
        )
        for run in runs
    ]
    runner = Runner(jobs, out)
    try:
        runner.execute(arguments.jobs, console)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on.", file=sys.stderr)
        return 130
    for path in write_report(out):
        print(f"Report: {path}")
    for line in runner.failures():
        print(line, file=sys.stderr)
    return 1 if runner.failures() else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main())

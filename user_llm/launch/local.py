"""Runs tables of the paper on this machine, one process a run:

    user-llm sweep --tables=2,5,fig3 --scale=laptop --out=runs/laptop [--datasets=movielens] [--seeds=0,1] \\
        [--jobs=2] [--raw movielens=ml-latest-small.zip] [--set training.user_llm.steps=600 ...]

Runs that several tables share happen once, and an encoder pretrained once feeds every run that reads it. The same
command again goes on where it was stopped: finished runs are skipped, broken ones resume, failed ones are tried
again. A run that fails stops only those that need it. Ctrl-C lets running processes save a checkpoint first. More
tables, datasets or seeds with the same --out join those that are there.

At the end `report.md` and `report.html` are written there (also by `user-llm report --out=…`, at any time);
`runs.json` says what became of each run, and `logs/` what it printed. One launcher works on a folder at a time. A run
that another process holds, as one that a killed launcher has left, is waited for.

Exit status: 0 all finished, 1 some failed or were stopped, 2 nothing was started, 75 another launcher works on --out,
130 stopped.
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from user_llm.config import refuse
from user_llm.errors import show
from user_llm.experiment.validation import problems
from user_llm.files import replacing
from user_llm.launch.arguments import places_of, plan_of, sweep_parser
from user_llm.launch.datasets import unbuilt
from user_llm.launch.forecast import forecast
from user_llm.launch.plan import Plan
from user_llm.launch.report import write_report
from user_llm.launch.runner import FINISHED, Job, Runner
from user_llm.launch.runs import Run
from user_llm.launch.starts import noted
from user_llm.locks import owned

PYTHON = (sys.executable,)


def write_commands(runs: Sequence[Run], out: Path, raw: Mapping[str, str], data_dir: str) -> list[Path]:
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


def main(argv: Sequence[str] | None = None, python: Sequence[str] = PYTHON) -> int:
    """Runs the tables that `argv` names and returns the exit status."""
    parser = sweep_parser("user-llm sweep", __doc__)
    parser.add_argument(
        "--write_commands", action="store_true", help="write the runs' arguments for a cluster, and start nothing"
    )
    arguments = parser.parse_args(argv)
    console = Console(highlight=False)
    try:
        plan = plan_of(arguments, problems)
        if not arguments.write_commands:  # for another machine
            refuse(unbuilt(plan.runs(), arguments.raw, arguments.data_dir))
    except Exception as error:
        return show(error, status=2)
    try:
        with owned(arguments.out):
            plan.save(arguments.out)
            return _run(plan, arguments, python, console)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on.", file=sys.stderr)
        return 130
    except Exception as error:
        return show(error)


def _run(plan: Plan, arguments: argparse.Namespace, python: Sequence[str], console: Console) -> int:
    runs = plan.runs()
    out, raw, data_dir = arguments.out, arguments.raw, arguments.data_dir
    if arguments.write_commands:
        for path in write_commands(runs, out, raw, data_dir):
            print(path)
        return 0
    runner = Runner([_job(run, out, python, raw, data_dir) for run in runs], out)
    waiting = [run for run in runs if runner.state(run.name) != FINISHED]
    with noted(out, arguments.jobs):
        print(forecast(plan.scale, waiting, arguments.jobs))
        runner.execute(arguments.jobs, console)
    for path in write_report(out):
        print(f"Report: {path}")
    for line in runner.failures():
        print(line, file=sys.stderr)
    return 1 if runner.failures() else 0


def _job(run: Run, out: Path, python: Sequence[str], raw: Mapping[str, str], data_dir: str) -> Job:
    command = [*python, *run.arguments(out, places_of(run, raw, data_dir))]
    return Job(run.name, command, [other.name for other in run.needs])


def cli() -> None:
    """Entry point."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main())


if __name__ == "__main__":
    cli()

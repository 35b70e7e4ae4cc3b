"""Runs a sweep on this machine, one process a run:

    python -m launch.local --sweep=models --config=configs/ml_latest_small.py --seeds=0,1 --out=runs/models \
        [--jobs=1] [--set training.user_llm.steps=600 ...]

The same command again goes on where it was stopped: finished runs are skipped, broken ones resume, failed ones are
tried again. A run that fails stops only those that need it. Ctrl-C lets running processes save a checkpoint first.
At the end the sweep's table is printed and written to `table.md`; `runs.json` says what became of each run, and
`logs/` what it printed. Exit status: 0 all finished, 1 some failed, 2 nothing was started, 130 stopped.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from launch import malloc
from launch.results import table
from launch.sweeps import SWEEPS, Run
from user_llm.config import as_flag
from user_llm.files import replacing

RECORDS = "runs.json"
FINISHED, FAILED, SKIPPED, RUNNING, STOPPED = "finished", "failed", "skipped", "running", "stopped"
MAIN = (sys.executable, "-m", "user_llm.main")

_POLL_SECONDS = 0.2


class Sweep:
    """The runs of a sweep and what became of them.

    Args:
        runs: each after those it needs.
        flags: of every run's command, besides its own overrides and its workdir.
        out: the folder of the sweep; a run's workdir is `out/<name>`.
        command: what is started, in front of the flags.

    Attributes:
        records: run name → `flags`, `state`, `seconds` (over all starts) and `message`, as in `runs.json`.

    Raises:
        ValueError: `out` holds a run of one of these names that was started with other flags.
    """

    def __init__(self, runs: Sequence[Run], flags: Sequence[str], out: Path, command: Sequence[str] = MAIN):
        self.runs = {run.name: run for run in runs}
        self.out = out
        self._command = command
        self._active: dict[str, tuple[subprocess.Popen, float]] = {}
        path = out / RECORDS
        self.records: dict[str, dict] = json.loads(path.read_text()) if path.is_file() else {}
        for run in runs:
            wanted = [*flags, *(as_flag(key, value) for key, value in run.overrides.items())]
            record = self.records.setdefault(run.name, {"flags": wanted, "state": "", "seconds": 0.0, "message": ""})
            if record["flags"] != wanted:
                changed = sorted({*record["flags"]} ^ {*wanted})
                raise ValueError(
                    f"{out} holds a run {run.name} with other flags; name another --out, or delete it. "
                    f"Different: {' '.join(changed)}"
                )
            record["state"] = FINISHED if self._has_results(run.name) else ""

    def execute(self, jobs: int, console: Console) -> None:
        """Runs what is not finished, `jobs` processes at a time.

        Raises:
            KeyboardInterrupt: it was stopped; the processes have ended and can be resumed.
        """
        waiting = [name for name in self.runs if self._state(name) != FINISHED]
        if len(waiting) < len(self.runs):
            console.print(f"{len(self.runs) - len(waiting)} of {len(self.runs)} runs are finished already")
        try:
            with console.status("") as status:
                while waiting or self._active:
                    ended = [name for name, (process, _) in self._active.items() if process.poll() is not None]
                    for name in ended:
                        self._settle(name, console)
                    if ended and not console.is_terminal:  # which has no live line
                        console.print(self.progress(jobs))
                    for name in list(waiting):
                        needs = [self._state(other) for other in self.runs[name].needs]
                        if {FAILED, SKIPPED} & {*needs}:
                            self._skip(name, console)
                            waiting.remove(name)
                        elif all(state == FINISHED for state in needs) and len(self._active) < jobs:
                            self._start(name, console)
                            waiting.remove(name)
                    status.update(self.progress(jobs))
                    time.sleep(_POLL_SECONDS)
        except BaseException:
            self._stop(console)
            raise

    def progress(self, jobs: int) -> str:
        """One line: what runs, how many are done, and how long the rest takes if it takes as long on average."""
        states = [self._state(name) for name in self.runs]
        settled = sum(state in (FINISHED, FAILED, SKIPPED) for state in states)
        seconds = [self.records[name]["seconds"] for name in self.runs if self._state(name) == FINISHED]
        seconds = [value for value in seconds if value]
        now = {name: time.monotonic() - start for name, (_, start) in self._active.items()}
        parts = [f"{settled} of {len(states)} done"]
        parts += [f"{count} {state}" for state in (FAILED, SKIPPED) if (count := states.count(state))]
        parts += [f"{name} for {_duration(elapsed)}" for name, elapsed in now.items()]
        if seconds and settled < len(states):
            left = (len(states) - settled) * sum(seconds) / len(seconds) - sum(now.values())
            parts.append(f"about {_duration(max(left, 0) / jobs)} left")
        return " · ".join(parts)

    def failures(self) -> list[str]:
        """A line for each run that is not finished."""
        records = {name: self.records[name] for name in self.runs if self._state(name) != FINISHED}
        return [f"{name} {record['state']}: {record['message']}" for name, record in records.items()]

    def _state(self, name: str) -> str:
        return self.records[name]["state"]

    def _has_results(self, name: str) -> bool:
        return (self.out / name / "results.json").is_file()

    def _log(self, name: str) -> Path:
        return self.out / "logs" / f"{name}.log"

    def _start(self, name: str, console: Console) -> None:
        log = self._log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [*self._command, *self.records[name]["flags"], f"--workdir={self.out / name}"]
        with log.open("ab") as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=malloc.TUNED | os.environ,
                start_new_session=True,  # Ctrl-C is for us: we pass it on as SIGTERM, once
            )
        self._active[name] = process, time.monotonic()
        self._note(name, RUNNING, "")
        console.print(f"{_clock()} {name} started; it prints to {log}", soft_wrap=True)

    def _settle(self, name: str, console: Console) -> None:
        """Records how a process ended that has."""
        process, start = self._active.pop(name)
        record = self.records[name]
        record["seconds"] = round(record["seconds"] + time.monotonic() - start, 1)
        if self._has_results(name):
            self._note(name, FINISHED, "")
            console.print(f"{_clock()} {name} finished after {_duration(record['seconds'])}")
        else:
            message = f"exit status {process.returncode}: {_last_line(self._log(name))}"
            self._note(name, FAILED, message)
            console.print(f"{_clock()} {name} failed: {message}", style="red", markup=False, soft_wrap=True)

    def _skip(self, name: str, console: Console) -> None:
        lacking = [other for other in self.runs[name].needs if self._state(other) in (FAILED, SKIPPED)]
        self._note(name, SKIPPED, f"needs {', '.join(lacking)}")
        console.print(f"{_clock()} {name} skipped: it needs {', '.join(lacking)}", style="yellow")

    def _stop(self, console: Console) -> None:
        """Ends the processes: they save a checkpoint first, unless a second Ctrl-C cuts that short."""
        if self._active:
            console.print(f"Stopping {', '.join(self._active)}: they save a checkpoint first (Ctrl-C again to kill)")
        processes = [process for process, _ in self._active.values()]
        try:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
        finally:
            for process in processes:
                process.kill()
                process.wait()
            for name in list(self._active):
                _, start = self._active.pop(name)
                self.records[name]["seconds"] += round(time.monotonic() - start, 1)
                self._note(name, STOPPED, "the same command goes on")

    def _note(self, name: str, state: str, message: str) -> None:
        self.records[name] |= {"state": state, "message": message}
        with replacing(self.out / RECORDS) as partial:
            partial.write_text(json.dumps(self.records, indent=1) + "\n")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), int(seconds // 3600)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{hours} h {minutes % 60} min"


def override_flags(settings: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """The flags of `--set key=value ...`.

    Raises:
        ValueError: one is not of that form, or names a key that the sweep itself sets.
    """
    own = {key for run in runs for key in run.overrides}
    for setting in settings:
        key, equals, _ = setting.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {setting}: expected key=value, as in training.user_llm.steps=600")
        if key in own:
            raise ValueError(f"--set {setting}: the sweep gives {key} its values; leave it out")
    return [f"--config.{setting}" for setting in settings]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch.local", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweep", required=True, choices=SWEEPS)
    parser.add_argument("--config", required=True, help="the experiment, a file of configs/")
    parser.add_argument("--out", required=True, type=Path, help="folder of the sweep")
    parser.add_argument("--seeds", default="0", help="comma between them (default: 0)")
    parser.add_argument("--jobs", default=1, type=int, help="processes at a time (default: 1)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="for every run")
    arguments = parser.parse_args(argv)
    try:
        arguments.seeds = [int(seed) for seed in arguments.seeds.split(",")]
    except ValueError:
        parser.error(f"--seeds={arguments.seeds}: expected whole numbers with commas between them, as 0,1")
    if arguments.jobs < 1 or len({*arguments.seeds}) < len(arguments.seeds):
        parser.error("--jobs must be at least 1, and every seed another")
    return arguments


def main(argv: Sequence[str] | None = None, command: Sequence[str] = MAIN) -> int:
    """Runs the sweep that `argv` names and returns the exit status."""
    arguments = _arguments(argv)
    console = Console(highlight=False)
    runs = SWEEPS[arguments.sweep](arguments.out, arguments.seeds)
    try:
        flags = [f"--config={arguments.config}", *override_flags(arguments.set, runs)]
        sweep = Sweep(runs, flags, arguments.out, command)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        sweep.execute(arguments.jobs, console)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on.", file=sys.stderr)
        return 130
    text = table(runs, sweep.records, arguments.out)
    with replacing(arguments.out / "table.md") as partial:
        partial.write_text(text, encoding="utf-8")
    print(text)
    for line in sweep.failures():
        print(line, file=sys.stderr)
    return 1 if sweep.failures() else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main())

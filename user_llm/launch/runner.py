"""Runs commands that build on one another on this machine, one process each: resumable, and honest about failures."""

import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from user_llm import locks
from user_llm.files import replacing
from user_llm.launch import malloc
from user_llm.launch.archive import RESULTS, archive, archive_of
from user_llm.launch.board import board, duration
from user_llm.launch.kept import kept
from user_llm.launch.progress import stage_progress

RECORDS = "runs.json"
FINISHED, FAILED, SKIPPED, RUNNING = "finished", "failed", "skipped", "running"
STOPPED, BUSY = "stopped", "busy"
_NO_RESULTS = (FAILED, SKIPPED, STOPPED)  # which a job that needs them cannot do without

_POLL_SECONDS = 0.2
_BUSY_SECONDS = 60.0  # until a job is tried again that another process kept from starting: a try takes seconds of CPU
_STOPPED_STATUSES = {status for number in (signal.SIGTERM, signal.SIGINT) for status in (128 + number, -number)}


@dataclasses.dataclass(frozen=True)
class Job:
    """A command that leaves `<out>/<name>/results.json`.

    Attributes:
        name: unique; the name of its folder.
        command: program and arguments.
        needs: names of the jobs that must be finished before.
    """

    name: str
    command: Sequence[str]
    needs: Sequence[str] = ()


def read_records(out: Path) -> dict[str, dict]:
    """What `runs.json` in the folder `out` says of each job; nothing where there is none.

    Raises:
        ConfigError: it is damaged.
    """
    return kept(out / RECORDS, _parsed, "delete it; only times and messages are lost") or {}


def _parsed(text: str) -> dict[str, dict]:
    return {
        name: {
            **record,
            "state": str(record["state"]),
            "seconds": float(record["seconds"]),
            "message": record["message"],
        }
        for name, record in json.loads(text).items()
    }


class Runner:
    """Jobs and what became of them.

    Args:
        jobs: each after those it needs.
        out: the folder they write to.

    Attributes:
        records: job name → `state`, `seconds` (over all starts), `message` and `command`, as in `runs.json`, which
            also keeps jobs of earlier calls.
    """

    def __init__(self, jobs: Sequence[Job], out: Path):
        self.jobs = {job.name: job for job in jobs}
        self.out = out
        self._active: dict[str, tuple[subprocess.Popen, float]] = {}
        self._busy: dict[str, float] = {}  # job → when it is tried again
        self.records = read_records(out)
        unfinished = self._unfinished()
        for job in jobs:
            record = self.records.setdefault(job.name, {"state": "", "seconds": 0.0, "message": ""})
            record |= {"state": "" if job.name in unfinished else FINISHED, "command": list(job.command)}

    def execute(self, parallel: int, console: Console) -> None:
        """Runs what is not finished, `parallel` processes at a time.

        A job whose folder or dataset another process holds (exit status 75) is started again after a while, or is
        finished when that process has left its results.

        Raises:
            KeyboardInterrupt: it was stopped; the processes have ended and can be resumed.
        """
        waiting = [name for name in self.jobs if self.state(name) != FINISHED]
        if len(waiting) < len(self.jobs):
            console.print(f"{len(self.jobs) - len(waiting)} of {len(self.jobs)} runs are finished already")
        if again := [name for name in waiting if archive_of(self.out, name).is_file()]:
            console.print(f"{len(again)} are run again for their models, as only their results are here: {again}")
        try:
            with Live(console=console, auto_refresh=False, transient=True) as live:
                while waiting or self._active or self._busy:
                    ended = [name for name, (process, _) in self._active.items() if process.poll() is not None]
                    for name in ended:
                        self._settle(name, console)
                    if ended and not console.is_terminal:  # which has no live table
                        console.print(self.summary(parallel))
                    waiting = self._retried(console) + waiting
                    for name in list(waiting):
                        needs = [self.state(other) for other in self.jobs[name].needs]
                        if any(state in _NO_RESULTS for state in needs):
                            self._skip(name, console)
                            waiting.remove(name)
                        elif all(state == FINISHED for state in needs) and len(self._active) < parallel:
                            self._start(name, console)
                            waiting.remove(name)
                    if console.is_terminal:
                        live.update(self._board(parallel), refresh=True)
                    time.sleep(_POLL_SECONDS)
        except BaseException:
            self._stop(console)
            raise

    def summary(self, parallel: int) -> str:
        """One line: how many are done, and how long the rest takes if it takes as long on average."""
        states = [self.state(name) for name in self.jobs]
        settled = sum(state in (FINISHED, *_NO_RESULTS) for state in states)
        seconds = [self.records[name]["seconds"] for name in self.jobs if self.state(name) == FINISHED]
        seconds = [value for value in seconds if value]
        now = self._elapsed()
        parts = [f"{settled} of {len(states)} done"]
        parts += [f"{count} {state}" for state in (*_NO_RESULTS, BUSY) if (count := states.count(state))]
        parts += [f"{name} for {duration(elapsed)}" for name, elapsed in now.items()]
        if seconds and settled < len(states):
            left = (len(states) - settled) * sum(seconds) / len(seconds) - sum(now.values())
            parts.append(f"about {duration(max(left, 0) / parallel)} left")
        return " · ".join(parts)

    def failures(self) -> list[str]:
        """A line for each job that is not finished."""
        records = {name: self.records[name] for name in self.jobs if self.state(name) != FINISHED}
        return [f"{name} {record['state']}: {record['message']}" for name, record in records.items()]

    def state(self, name: str) -> str:
        """What became of a job: "" before it was started."""
        return self.records[name]["state"]

    def _elapsed(self) -> dict[str, float]:
        return {name: time.monotonic() - start for name, (_, start) in self._active.items()}

    def _board(self, parallel: int):
        running = {name: (elapsed, stage_progress(self.out / name)) for name, elapsed in self._elapsed().items()}
        others = {name: (self.state(name), self.records[name]["message"]) for name in self.jobs if name not in running}
        return board(running, others, self.summary(parallel).split(" · "))

    def _unfinished(self) -> set[str]:
        """The jobs without results, and those of which only an archive is left where one of the former needs more."""
        unfinished: set[str] = set()
        needed: set[str] = set()
        for name, job in reversed(self.jobs.items()):  # none before those that need it
            archived = archive_of(self.out, name).is_file() and name not in needed
            if not archived and not self._has_results(name):
                unfinished.add(name)
                needed.update(job.needs)
        return unfinished

    def _has_results(self, name: str) -> bool:
        return (self.out / name / RESULTS).is_file()

    def _log(self, name: str) -> Path:
        return self.out / "logs" / f"{name}.log"

    def _start(self, name: str, console: Console) -> None:
        log = self._log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        (self.out / name).mkdir(exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen(
                self.jobs[name].command,
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
            archive(self.out, [name])
            self._note(name, FINISHED, "")
            console.print(f"{_clock()} {name} finished after {duration(record['seconds'])}", soft_wrap=True)
        elif process.returncode == locks.BUSY:
            self._busy[name] = time.monotonic() + _BUSY_SECONDS
            message = _last_line(self._log(name))
            self._note(name, BUSY, message)
            console.print(f"{_clock()} {name} waits: {message}", style="yellow", markup=False, soft_wrap=True)
        elif process.returncode in _STOPPED_STATUSES:
            self._note(name, STOPPED, "the same command goes on")
            console.print(f"{_clock()} {name} was stopped, not by us", style="yellow", soft_wrap=True)
        else:
            message = f"exit status {process.returncode}: {_last_line(self._log(name))}"
            self._note(name, FAILED, message)
            console.print(f"{_clock()} {name} failed: {message}", style="red", markup=False, soft_wrap=True)

    def _retried(self, console: Console) -> list[str]:
        """The busy jobs whose time has come; those that another process has finished are noted."""
        for name in [name for name in self._busy if self._has_results(name)]:
            del self._busy[name]
            self._note(name, FINISHED, "")
            console.print(f"{_clock()} {name} was finished by another process", soft_wrap=True)
        due = [name for name, when in self._busy.items() if when <= time.monotonic()]
        for name in due:
            del self._busy[name]
        return due

    def _skip(self, name: str, console: Console) -> None:
        lacking = ", ".join(other for other in self.jobs[name].needs if self.state(other) in _NO_RESULTS)
        self._note(name, SKIPPED, f"needs {lacking}")
        console.print(f"{_clock()} {name} skipped: it needs {lacking}", style="yellow", soft_wrap=True)

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
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
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

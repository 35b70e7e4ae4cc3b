"""Runs commands of ours in forks of a process that has imported them: a fault costs a tenth of a second, not ten."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TRACE = "Traceback (most recent call last)"

_CONTEXT = multiprocessing.get_context("forkserver")
# JAX has started no thread before a device is asked for.
_CONTEXT.set_forkserver_preload(["user_llm.main", "user_llm.builders.build", "user_llm.launch.local"])


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
      status: as a shell has it: 128 + its number where a signal ended it.
      text: what it printed, stdout and stderr together.
    """

    status: int
    text: str

    def check(self, status: int, *words: str) -> None:
        """Fails unless it ended with `status`, said all of `words`, and showed no stack trace."""
        assert TRACE not in self.text, self.text[-4000:]
        assert self.status == status, f"status {self.status}, expected {status}\n{self.text[-4000:]}"
        for word in words:
            assert word in self.text, f"not said: {word!r}\n{self.text[-4000:]}"


def command(
    module: str, *arguments: str | Path, folder: Path, timeout: float = 120, env: dict[str, str] | None = None
) -> Outcome:
    """Runs `python -m MODULE ARGUMENTS` in the root of the clone.

    Args:
      module: one of those with a `cli` or `main` that `_enter` knows.
      folder: an existing one, for what it prints.
      timeout: seconds after which it is killed: a hang, status 137.
      env: variables to set.
    """
    log = folder / f"{os.urandom(4).hex()}.log"
    return ended(start(module, *arguments, log=log, env=env), log, timeout)


def start(
    module: str, *arguments: str | Path, log: Path, env: dict[str, str] | None = None
) -> multiprocessing.process.BaseProcess:
    """As `command`, but does not wait for its end. What it prints is in `log`."""
    process = _CONTEXT.Process(target=_enter, args=(module, [str(word) for word in arguments], log, env or {}))
    process.start()
    return process


def ended(process: multiprocessing.process.BaseProcess, log: Path, timeout: float = 120) -> Outcome:
    """How a process of `start` ends, or ended; it is killed after `timeout` seconds."""
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
    status = process.exitcode if process.exitcode >= 0 else 128 - process.exitcode
    return Outcome(status, log.read_text(errors="replace"))


def train(*arguments: str | Path, folder: Path, **options) -> Outcome:
    """`python -m user_llm.main`."""
    return command("user_llm.main", *arguments, folder=folder, **options)


def build(*arguments: str | Path, folder: Path, **options) -> Outcome:
    """`user-llm build`."""
    return command("user_llm.builders.build", *arguments, folder=folder, **options)


def results(workdir: Path) -> dict:
    """What results.json says, but for the commit: somebody may be editing the clone while the tests run."""
    content = json.loads((workdir / "results.json").read_text())
    del content["provenance"]["commit"]
    return content


def _enter(module: str, arguments: Sequence[str], log: Path, env: dict[str, str]) -> None:
    """In the fork: what `python -m` does, with stdout and stderr in a file."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # pytest's own streams, or the fork server's, stood there before.
    encoding = env.get("PYTHONIOENCODING", "utf-8")
    sys.stdout = os.fdopen(1, "w", closefd=False, encoding=encoding)
    sys.stderr = os.fdopen(2, "w", closefd=False, encoding=encoding, errors="backslashreplace")
    os.environ.update(env)
    os.chdir(REPOSITORY)
    sys.argv = [module, *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    entry = sys.modules[module]
    status = 0
    try:
        status = entry.cli() if hasattr(entry, "cli") else entry.main(list(arguments))
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        with contextlib.suppress(ValueError, OSError):
            sys.stdout.flush()
            sys.stderr.flush()
    if status:
        os._exit(status)

"""What a command shows of an error: one line where a user can mend it, the traceback where it is a bug."""

import ast
import errno
import importlib
import logging
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from absl import flags

from user_llm import errors
from user_llm.builders import build
from user_llm.builders.malformed import MalformedSourceError
from user_llm.checkpoints.tensors import CheckpointError
from user_llm.config import ConfigError
from user_llm.errors import Unreachable
from user_llm.experiment.workdir import NoRun
from user_llm.launch import local
from user_llm.launch.report import __main__ as report
from user_llm.training.loop import TrainingDiverged

ROOT = Path(__file__).resolve().parents[1]
UNSET = SimpleNamespace(value=None)


def raiser(error):
    def call(*_, **__):
        raise error

    return call


def of_jax():
    with pytest.raises(ValueError) as caught:
        jnp.concatenate([])
    return caught.value


def module(name):
    """A command's module; two of them define the flag `config`, each for its own process."""
    if name not in sys.modules and "config" in flags.FLAGS:
        delattr(flags.FLAGS, "config")
    return importlib.import_module(name)


@pytest.fixture
def main(monkeypatch):
    """`user_llm.main` that ends with an error, from within the run; returns the exit status."""
    command = module("user_llm.main")
    before = signal.getsignal(signal.SIGTERM)
    for name in ("_COORDINATOR", "_NUM_PROCESSES", "_PROCESS_ID", "_DISTRIBUTED", "_COMPILE_FOR"):
        monkeypatch.setattr(command, name, UNSET)
    monkeypatch.setattr(command, "_log_to_stderr", lambda: None)
    monkeypatch.setattr(command, "bound_host", lambda *_: None)
    for name in ("_GIN_FILE", "_GIN"):
        monkeypatch.setattr(command, name, UNSET)
    monkeypatch.setattr(command.processes, "start", lambda *_: None)

    def call(error):
        monkeypatch.setattr(command, "_run", raiser(error))
        with pytest.raises(SystemExit) as ended:
            command.main(None)
        return ended.value.code

    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def efficiency(monkeypatch):
    command = module("user_llm.efficiency.__main__")

    def call(error):
        monkeypatch.setattr(command, "_EVENTS", SimpleNamespace(value=["50"]))
        monkeypatch.setattr(command, "_CONFIG", UNSET)
        monkeypatch.setattr(command, "_USERS", UNSET)
        monkeypatch.setattr(command, "_ROUNDS", UNSET)
        monkeypatch.setattr(command, "_OUTPUT", UNSET)
        monkeypatch.setattr(command, "measure", raiser(error))
        with pytest.raises(SystemExit) as ended:
            command.main(None)
        return ended.value.code

    return call


@pytest.fixture
def builder(monkeypatch):
    def call(error):
        monkeypatch.setattr(build, "builder_of", raiser(error))
        return build.main(["movielens/1m"])

    return call


@pytest.fixture
def planning(monkeypatch, tmp_path):
    def call(error):
        monkeypatch.setattr(local, "plan_of", raiser(error))
        return local.main(["--tables=2", "--scale=laptop", f"--out={tmp_path}"])

    return call


@pytest.fixture
def running(monkeypatch, tmp_path):
    def call(error):
        monkeypatch.setattr(local, "Runner", raiser(error))
        return local.main(["--tables=2", "--scale=laptop", f"--out={tmp_path}"])

    return call


@pytest.fixture
def reporting(monkeypatch, tmp_path):
    def call(error):
        monkeypatch.setattr(sys, "argv", ["report", f"--out={tmp_path}"])
        monkeypatch.setattr(report, "write_report", raiser(error))
        return report.main()

    return call


STATUS = {"main": 1, "efficiency": 1, "builder": 1, "planning": 2, "running": 1, "reporting": 2}

MENDED_BY_USERS = [
    errors.UserError("lower batch_size"),
    ConfigError("lower batch_size"),
    errors.MissingFile("no tokenizer: name one"),
    NoRun("train it first"),
    CheckpointError("key q is missing"),
    TrainingDiverged("lower learning_rate"),
    MalformedSourceError("ratings.csv is empty"),
    Unreachable("fetch it elsewhere"),
    PermissionError(errno.EACCES, "Permission denied", "/root/results.json"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    MemoryError("Unable to allocate 37.3 GiB for an array"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 40000000000 bytes."),
]
BUGS = [
    of_jax(),
    ValueError("operands could not be broadcast"),
    OSError("Bad file descriptor"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    KeyError("encoder"),
    jax.errors.JaxRuntimeError("INTERNAL: XLA"),
]


@pytest.mark.parametrize("command", STATUS)
def test_what_a_user_can_mend_is_one_line_and_a_bug_shows_its_traceback(command, request, capsys):
    call = request.getfixturevalue(command)
    for error in MENDED_BY_USERS:
        assert call(error) == STATUS[command]
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ")
        assert str(error) in last
    for error in BUGS:
        with pytest.raises(type(error)) as caught:  # which Python shows, with status 1
            call(error)
        assert caught.value is error
        assert "error: " not in capsys.readouterr().err


def test_with_verbosity_a_user_sees_where_it_happened(caplog, capsys):
    with caplog.at_level(logging.DEBUG, "user_llm"):
        try:
            raiser(errors.UserError("lower it"))()
        except errors.UserError as error:
            errors.show(error)
    assert "in call" in caplog.text
    assert capsys.readouterr().err == "error: lower it\n"


# What only a programmer of this package can cause: shapes that do not fit, names of our own that are not there.
PLAIN = {
    "user_llm/asking.py",
    "user_llm/builders/amazon_reviews/catalogue.py",  # caught where it is raised
    "user_llm/builders/timelines.py",
    "user_llm/data/permutation.py",
    "user_llm/data/pipeline.py",
    "user_llm/data/sources.py",
    "user_llm/data/splits.py",
    "user_llm/decoding/beam.py",
    "user_llm/decoding/prefill.py",
    "user_llm/decoding/ranking.py",
    "user_llm/evaluation/metrics.py",
    "user_llm/evaluation/ranks.py",
    "user_llm/exported/runtime.py",  # which stands alone
    "user_llm/models/event_embedding.py",
    "user_llm/models/layers.py",
    "user_llm/models/user_encoder.py",
    "user_llm/parallel/rules.py",
    "user_llm/serving/batching.py",
    "user_llm/serving/requests.py",  # where pydantic catches it
    "user_llm/serving/served.py",
    "user_llm/training/cross_entropy.py",
    "user_llm/training/sampled_softmax.py",
    "user_llm/training/trainable.py",
}
BUILT_IN = {"ValueError", "TypeError", "RuntimeError", "OSError", "FileNotFoundError", "ConnectionError", "Exception"}


def test_an_error_that_a_user_can_cause_has_a_class_of_ours():
    """Of a built-in class, a command would show its traceback."""
    found = set()
    for package in ("user_llm", "launch"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                raised = getattr(node, "exc", None)  # of a `raise`
                if isinstance(raised, ast.Call) and getattr(raised.func, "id", "") in BUILT_IN:
                    found.add(path.relative_to(ROOT).as_posix())
    assert found == PLAIN

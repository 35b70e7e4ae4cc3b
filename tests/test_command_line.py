"""A wrong flag, key or type is answered in one line that names the right one, and with status 2."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from user_llm import command_line, keys, schema
from user_llm.config import ConfigError

ROOT = Path(__file__).resolve().parents[1]
CONFIG = f"--config={ROOT / 'configs' / 'efficiency.py'}"


def message(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        command_line.check_overrides(["main", *arguments])
    return str(caught.value)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.encoder.widht=3", "did you mean config.encoder.width?"),
        ("--config.encodr.width=3", "did you mean config.encoder.width?"),
        ("--config.width=3", "did you mean config.encoder.width or config.llm.width?"),
        ("--config.zzzz=3", "no such key; there is compute, data, encoder"),
        ("--config.stages[0]=llm", "did you mean config.stages?"),
        ("--config.encoder=3", "is a group of keys; set one of them, as in --config.encoder."),
        ("--confg.seed=3", "did you mean --config.seed?"),
        ("--config.encoder.width=wide", "expected a whole number, as in --config.encoder.width=128"),
        ("--config.encoder.width=64.5", "expected a whole number"),
        ("--config.encoder.width", "config.encoder.width=None: expected a whole number"),
        ("--noconfig.encoder.width", "expected a whole number"),
        ("--config.data.max_malformed=few", "expected a number, as in --config.data.max_malformed=0.0"),
        ("--config.data.validation=maybe", "expected true or false, as in --config.data.validation=true"),
        ("--config.stages=('llm',", "expected a tuple, as in --config.stages=('llm',"),
        (CONFIG, "is the second config"),
    ],
)
def test_a_wrong_override_is_answered_with_the_right_one(argument, expected):
    assert expected in message(CONFIG, argument)


def test_a_key_of_every_stage_is_offered_for_every_stage():
    said = message(CONFIG, "--config.training.learning_rate=1")
    for stage in ("llm", "encoder", "user_llm"):
        assert f"config.training.{stage}.learning_rate" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config.encoder.width=64", "--config.data.max_malformed=1", "--config.strategy=enc"],
        ["--config.encoder.width", "64", "--config.data.validation", "--workdir=here"],
        ["--noconfig.data.validation", "-config.stages=llm"],
        ["--", "--config.zzzz=3"],
    ],
)
def test_right_overrides_pass_in_every_form(arguments):
    command_line.check_overrides(["main", CONFIG, *arguments])


def test_a_missing_file_is_answered_with_those_beside_it():
    said = message(f"--config={ROOT / 'configs' / 'bas.py'}")
    assert "no such config file" in said
    assert "efficiency.py" in said


def test_an_override_before_the_file_is_refused():
    assert "name the file, then change its keys" in message("--config.seed=3", CONFIG)


def test_a_config_file_may_take_an_argument(tmp_path):
    path = tmp_path / "sweep.py"
    path.write_text(
        "from user_llm import schema\n"
        "def get_config(seed):\n"
        "    config = schema.get_config()\n"
        "    config.seed = int(seed)\n"
        "    return config\n"
    )
    assert command_line.load(f"{path}:7").seed == 7
    with pytest.raises(ConfigError, match="needs something behind a colon"):
        command_line.load(str(path))
    with pytest.raises(ConfigError, match=r"line 4: ValueError: invalid literal for int\(\) with base 10: 'x:y'"):
        command_line.load(f"{path}:x:y")


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_override_is_taken_or_answered(key, value):
    """And what is taken has the type of the key's default."""
    for name in (key, "encoder.width", "training.llm.learning_rate", "stages", "data.validation", "name"):
        found = keys.parsed(name, value)
        if not list(keys.wrong_key(name, found)):
            assert type(found) is type(keys.DEFAULTS[name])


def test_the_nearest_keys_share_a_name_and_where_given_a_group():
    known = ["encoder.num_heads", "encoder.num_layers", "llm.num_heads"]
    assert keys.nearest_keys("encoder.num_head", known) == ["encoder.num_heads"]
    assert keys.nearest_keys("num_heads", known) == ["encoder.num_heads", "llm.num_heads"]
    assert keys.nearest_keys("xyz", known) == []


PROGRAM = """
import functools
from absl import app
from ml_collections import config_flags
from user_llm import command_line
from user_llm.config import ConfigError

def validate(config):  # as `experiment.validation` does, which takes seconds to import
    if config.encoder.width == 100:
        raise ConfigError("config.encoder.width=100: too odd")

config = config_flags.DEFINE_config_file("config")
parser = functools.partial(command_line.flags_parser, validate=validate)
app.run(lambda argv: print("width", config.value.encoder.width), flags_parser=parser)
"""


@pytest.mark.parametrize(
    ("argument", "status", "says"),
    [
        ("--config.encoder.width=64", 0, "width 64\n"),
        ("--config.encoder.widht=64", 2, "did you mean config.encoder.width?"),
        ("--config.encoder.width=100", 2, "error: config.encoder.width=100: too odd"),
        ("--wrokdir=x", 2, "Unknown command line flag"),
        ("extra", 2, "unexpected argument 'extra'"),
    ],
)
def test_a_program_ends_with_one_line_and_status_2(argument, status, says):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, CONFIG, argument],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    answer = done.stdout if status == 0 else done.stderr
    assert says in answer
    assert answer.count("\n") == 1


def test_the_schema_has_no_key_that_cannot_be_set_from_the_command_line():
    def kinds(config):
        for value in config.values():
            yield from kinds(value) if hasattr(value, "items") else [type(value)]

    assert set(kinds(schema.get_config())) <= {bool, int, float, str, tuple}

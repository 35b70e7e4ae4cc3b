"""gin wires the host alone: what an experiment's config names, no gin file can bind (docs/architecture.md)."""

import dataclasses
import importlib
import inspect
import pkgutil
from pathlib import Path

import gin
import pytest
from gin import config as gin_config
from ml_collections import ConfigDict

import user_llm
from user_llm import schema
from user_llm.errors import UserError
from user_llm.host import Host, bound_host

HOST_GIN = Path(__file__).resolve().parents[1] / "configs" / "gin" / "host.gin"


@pytest.fixture(autouse=True)
def _no_bindings():
    gin.clear_config()
    yield
    gin.clear_config()


def bindable() -> dict[str, set[str]]:
    """Of everything in the package that gin can configure, the parameters."""
    for module in pkgutil.walk_packages(user_llm.__path__, "user_llm."):
        # One defines the command line's flags, the other runs in an environment of its own.
        if module.name not in ("user_llm.main", "user_llm.builders.beam.runner"):
            importlib.import_module(module.name)
    return {
        selector: set(inspect.signature(configurable.wrapped).parameters)
        for selector, configurable in gin_config._REGISTRY.items()  # gin has no public list
        if selector.startswith("user_llm.")
    }


def names(config: ConfigDict) -> set[str]:
    """The names of all keys and groups of keys."""
    inner = (names(value) for value in config.values() if isinstance(value, ConfigDict))
    return set(config.keys()).union(*inner)


def test_what_gin_binds_is_no_key_of_an_experiment():
    found = bindable()
    assert found["user_llm.host.Host"] == {field.name for field in dataclasses.fields(Host)}
    keys = names(schema.get_config())
    assert {"seed", "encoder", "width", "batch_size", "fsdp"} <= keys
    for selector, parameters in found.items():
        assert not parameters & keys, selector


def test_the_gin_file_holds_every_field_with_its_default():
    gin.parse_config_file(str(HOST_GIN))
    defaults = {field.name: field.default for field in dataclasses.fields(Host)}
    assert gin.get_bindings("Host") == defaults
    bindings = [line for line in HOST_GIN.read_text().splitlines() if line and not line.startswith("#")]
    assert len(bindings) == len(defaults)
    assert Host() == Host(**defaults)


def test_a_binding_reaches_the_host():
    host = bound_host([str(HOST_GIN)], ["Host.tensorboard = False", "Host.reader_threads = 7"])
    assert host == Host(reader_threads=7, prefetch_batches=4, tensorboard=False, compilation_cache="")


def test_a_binding_of_an_experiments_key_is_refused():
    with pytest.raises(ValueError, match="doesn't have a parameter named 'batch_size'"):
        gin.parse_config("Host.batch_size = 3")


@pytest.mark.parametrize(
    ("binding", "says"),
    [
        ("Host.tensorbord=False", "--gin=Host.tensorbord=False: "),
        ("Hots.tensorboard=False", "Hots"),
        ("Host.tensorboard=(", "expected as in --gin="),
        ("Host.reader_threads=x", "--gin=Host.reader_threads=x: Failed to parse token 'x' (line 1); expected as in"),
        ("Host.reader_threads='x'", "Host.reader_threads='x', of --gin or --gin_file: expected a whole number"),
        ("Host.reader_threads=True", "Host.reader_threads=True"),
        ("Host.prefetch_batches=-3", "Host.prefetch_batches=-3"),
        ("Host.tensorboard=0", "Host.tensorboard=0, of --gin or --gin_file: expected True or False"),
        ("Host.compilation_cache=None", "expected text"),
    ],
)
def test_a_wrong_binding_is_one_line_that_names_it(binding, says):
    with pytest.raises(UserError) as caught:
        bound_host([], [binding])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gin_file_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"--gin_file=nowhere\.gin: "):
        bound_host(["nowhere.gin"], [])

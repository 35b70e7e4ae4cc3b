"""Hugging Face folders and PEFT adapters, changed at random: they load, or one line says what is wrong with them."""

import dataclasses
import json
import shutil
import struct
import tempfile
from pathlib import Path

import jax.numpy as jnp
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from user_llm.checkpoints.adapters import load_adapters, save_adapters
from user_llm.checkpoints.families import FAMILIES, read_config
from user_llm.checkpoints.huggingface import load_language_model, load_parameters, save_language_model
from user_llm.errors import UserError
from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel, LanguageModelConfig
from user_llm.models.lora import LoraConfig

PLAIN = LanguageModelConfig(
    vocab_size=12, num_layers=1, width=4, num_heads=2, num_kv_heads=1, head_dim=2, hidden=6, max_length=16
)
ADAPTED = dataclasses.replace(PLAIN, lora=LoraConfig(rank=1, alpha=2.0, targets=("q",)))
WEIGHTS, ADAPTERS, SETTINGS = "model.safetensors", "adapter_model.safetensors", "adapter_config.json"
DIMS = dict(vocab_size=12, hidden_size=4, num_hidden_layers=1, intermediate_size=6, num_attention_heads=2, n_layer=1)
DIMS |= dict(n_embd=4, n_head=2, rope_theta=1e4, rope_scaling={"rope_type": "linear", "factor": 2.0})
OPTIONS = (
    *DIMS,
    *("model_type", "architectures", "head_dim", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings"),
    *("max_position_embeddings", "attention_bias", "mlp_bias", "hidden_act", "hidden_activation", "layer_types"),
    *("sliding_window", "sliding_window_pattern", "rope_parameters", "query_pre_attn_scalar", "text_config", "n_inner"),
    *("final_logit_softcapping", "use_sliding_window", "quantization_config", "n_positions", "activation_function"),
)
ADAPTER_OPTIONS = (
    "r",
    "lora_alpha",
    "peft_type",
    "rank_pattern",
    "bias",
    "use_dora",
    "init_lora_weights",
    "use_rslora",
)
WORDS = (
    *("linear", "llama3", "full_attention", "silu", "float32", "rope_type", "factor", "rope_theta", "F32", "BF16"),
    *("model.safetensors", "../model.safetensors", "model.norm.weight", "LlamaForCausalLM", "pissa", "weight_map"),
)
NUMBERS = st.sampled_from([0, 1, 2, -1, 2**31, 2**63, 10**400, 0.5, 1e-300, 1e300]) | st.floats() | st.integers()
SCALARS = st.none() | st.booleans() | NUMBERS | st.sampled_from(WORDS) | st.text(max_size=6)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3)
)


@pytest.fixture(scope="session")
def sound(tmp_path_factory) -> Path:
    """`one` in one file, `shards` in several, `peft`."""
    root = tmp_path_factory.mktemp("sound")
    model = LanguageModel(PLAIN, rngs=nnx.Rngs(0))
    save_language_model(model, root / "one")
    save_language_model(model, root / "shards", max_shard_bytes=100)
    adapted = LanguageModel(ADAPTED, rngs=nnx.Rngs(0))
    values = {path: jnp.asarray(value) for path, value in parameters.split(adapted)[1].items() if "/lora/" in path}
    save_adapters(values, adapted.config, root / "peft")
    return root


def changed(values: dict, keys: tuple[str, ...], data) -> dict:
    """One to three keys have another value, or are gone."""
    values = dict(values)
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3)):
        if data.draw(st.booleans()) or key not in values:
            values[key] = data.draw(VALUES)
        else:
            del values[key]
    return values


def change_json(file: Path, keys: tuple[str, ...], data) -> None:
    file.write_text(json.dumps(changed(json.loads(file.read_text()), keys, data)))


def change_index(file: Path, data) -> None:
    values = json.loads(file.read_text())
    if data.draw(st.booleans()):
        values["weight_map"] = changed(values["weight_map"], tuple(values["weight_map"]), data)
    file.write_text(json.dumps(changed(values, ("weight_map",), data) if data.draw(st.booleans()) else values))


def change_header(file: Path, data) -> None:
    """An entry of the header, some of its bytes, or the length of the file."""
    whole = bytearray(file.read_bytes())
    length = struct.unpack("<Q", whole[:8])[0]
    kind = data.draw(st.sampled_from(["entry", "bytes", "cut"]))
    if kind == "entry":
        values = json.loads(whole[8 : 8 + length])
        key = data.draw(st.sampled_from(sorted(values)))
        values[key] = changed(values[key], ("dtype", "shape", "data_offsets"), data)
        text = json.dumps(values).encode()
        whole = struct.pack("<Q", len(text)) + text + whole[8 + length :]
    elif kind == "bytes":
        for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
            whole[place] = data.draw(st.integers(0, 255))
    else:
        del whole[data.draw(st.integers(0, len(whole))) :]
    file.write_bytes(whole)


def load_plain(folder: Path) -> None:
    load_parameters(folder, PLAIN)


def load_adapted(folder: Path) -> None:
    load_adapters(folder, ADAPTED)


# What is changed → the folder, how, and what reads it.
KINDS = {
    "config": ("one", lambda folder, data: change_json(folder / "config.json", OPTIONS, data), load_language_model),
    "header": ("one", lambda folder, data: change_header(folder / WEIGHTS, data), load_plain),
    "index": ("shards", lambda folder, data: change_index(folder / f"{WEIGHTS}.index.json", data), load_plain),
    "adapter": ("peft", lambda folder, data: change_json(folder / SETTINGS, ADAPTER_OPTIONS, data), load_adapted),
    "adapter header": ("peft", lambda folder, data: change_header(folder / ADAPTERS, data), load_adapted),
}


def check(call, *arguments) -> None:
    said = ""
    try:
        call(*arguments)
    except UserError as error:
        said = str(error)
    except OSError as error:
        said = error.filename
    assert said is not None
    assert "\n" not in said
    assert len(said.encode()) < 2000


def load_a_changed_one(kind: str, sound: Path, data) -> None:
    name, change, load = KINDS[kind]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(sound / name, Path(place) / name))
        change(folder, data)
        check(load, folder)


def read_a_changed_config(name: str, data) -> None:
    values = changed({"model_type": name} | DIMS, OPTIONS, data)
    check(read_config, {**values, "text_config": values} if FAMILIES[name].section else values, "config.json")


def fuzz(examples: int):
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]
    return settings(max_examples=examples, deadline=20_000, suppress_health_check=quiet)


@pytest.mark.parametrize("kind", KINDS)
@fuzz(15)
@given(st.data())
def test_a_changed_folder_loads_or_is_named(kind, sound, data):
    load_a_changed_one(kind, sound, data)


@pytest.mark.parametrize("name", FAMILIES)
@fuzz(60)
@given(st.data())
def test_a_changed_config_is_read_or_named(name, data):
    read_a_changed_config(name, data)


@pytest.mark.drill
@pytest.mark.parametrize("kind", KINDS)
@fuzz(500)
@given(st.data())
def test_many_changed_folders_load_or_are_named(kind, sound, data):
    load_a_changed_one(kind, sound, data)


@pytest.mark.drill
@pytest.mark.parametrize("name", FAMILIES)
@fuzz(1500)
@given(st.data())
def test_many_changed_configs_are_read_or_named(name, data):
    read_a_changed_config(name, data)

"""Language models in the Hugging Face layout: `config.json`, safetensors (one file or shards), `tokenizer.model`.

A table pairs a family's keys with our parameter paths. Between the two lies at most a transposition: their
matrices are `[outputs, inputs]` of two dimensions, ours `[inputs, outputs]` with heads apart.
"""

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel, LanguageModelConfig

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
INDEX_NAME, TOKENIZER_NAME = "model.safetensors.index.json", "tokenizer.model"


class CheckpointError(ValueError):
    """A folder that is no checkpoint of a model we can hold; the message names the file and key."""


class Row(NamedTuple):
    """One pair of the table. `inputs`: how many leading dimensions of ours are the matrix's inputs; None: a copy."""

    theirs: str
    ours: str
    inputs: int | None


LLAMA = (
    Row("model.embed_tokens.weight", "embedding_VD", None),
    Row("model.layers.{layer}.input_layernorm.weight", "layers/{layer}/attention_norm/scale_D", None),
    Row("model.layers.{layer}.self_attn.q_proj.weight", "layers/{layer}/attention/q_DNH", 1),
    Row("model.layers.{layer}.self_attn.k_proj.weight", "layers/{layer}/attention/k_DKH", 1),
    Row("model.layers.{layer}.self_attn.v_proj.weight", "layers/{layer}/attention/v_DKH", 1),
    Row("model.layers.{layer}.self_attn.o_proj.weight", "layers/{layer}/attention/o_NHD", 2),
    Row("model.layers.{layer}.post_attention_layernorm.weight", "layers/{layer}/mlp_norm/scale_D", None),
    Row("model.layers.{layer}.mlp.gate_proj.weight", "layers/{layer}/mlp/gate_DF", 1),
    Row("model.layers.{layer}.mlp.up_proj.weight", "layers/{layer}/mlp/up_DF", 1),
    Row("model.layers.{layer}.mlp.down_proj.weight", "layers/{layer}/mlp/down_FD", 1),
    Row("model.norm.weight", "final_norm/scale_D", None),
    Row("lm_head.weight", "head_VD", None),
)
# What older exports store beside the weights although it follows from the config.
DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


class Tensor(NamedTuple):
    """One of their tensors: its key, its place among ours (a path, and a row of it where layers are stacked)."""

    key: str
    path: str
    layer: int | None
    inputs: int | None


def _tensors(config: LanguageModelConfig) -> Iterator[Tensor]:
    """All tensors of a model, in the table's order."""
    for theirs, ours, inputs in LLAMA:
        if ours == "head_VD" and config.tie_embeddings:
            continue
        if "{layer}" not in theirs:
            yield Tensor(theirs, ours, None, inputs)
        elif config.scan_layers:
            path = ours.replace("{layer}/", "")
            yield from (Tensor(theirs.format(layer=n), path, n, inputs) for n in range(config.num_layers))
        else:
            for n in range(config.num_layers):
                yield Tensor(theirs.format(layer=n), ours.format(layer=n), None, inputs)


def _their_shape(shape: tuple[int, ...], inputs: int | None) -> tuple[int, ...]:
    return shape if inputs is None else (math.prod(shape[inputs:]), math.prod(shape[:inputs]))


def _llama_config(values: dict[str, Any], file: Path) -> LanguageModelConfig:
    def need(key: str) -> Any:
        if values.get(key) is None:
            raise CheckpointError(f"{file}: key {key!r} is missing.")
        return values[key]

    def only(key: str, supported: Any) -> None:
        if values.get(key, supported) != supported:
            raise CheckpointError(f"{file}: {key} is {values[key]!r}; only {supported!r} is supported.")

    only("hidden_act", "silu")
    only("attention_bias", False)
    only("mlp_bias", False)
    only("quantization_config", None)
    name = "rope_parameters" if values.get("rope_parameters") else "rope_scaling"
    rope = values.get(name) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError(f"{file}: {name} is {rope!r}; only plain rotary positions ('default') are supported.")
    width, num_heads = need("hidden_size"), need("num_attention_heads")
    return LanguageModelConfig(
        vocab_size=need("vocab_size"),
        num_layers=need("num_hidden_layers"),
        width=width,
        num_heads=num_heads,
        num_kv_heads=values.get("num_key_value_heads") or num_heads,
        head_dim=values.get("head_dim") or width // num_heads,
        hidden=need("intermediate_size"),
        rope_theta=float(rope.get("rope_theta", values.get("rope_theta", 10000.0))),
        norm_eps=values.get("rms_norm_eps", 1e-6),
        tie_embeddings=values.get("tie_word_embeddings", False),
        max_length=values.get("max_position_embeddings", 2048),
    )


FAMILIES = {"llama": _llama_config}


def load_config(folder: str | Path) -> LanguageModelConfig:
    """The shape of the language model in `folder`; an option we do not compute is an error, never ignored."""
    file = Path(folder) / CONFIG_NAME
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {CONFIG_NAME}: expected a Hugging Face model folder.") from None
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    family = values.get("model_type")
    if family not in FAMILIES:
        raise CheckpointError(f"{file}: model_type is {family!r}; supported: {', '.join(FAMILIES)}.")
    return FAMILIES[family](values, file)


def load_language_model(
    folder: str | Path,
    *,
    dtype: str = "float32",
    param_dtype: str = "float32",
    scan_layers: bool = False,
    remat: bool = False,
) -> LanguageModel:
    """Reads the model in `folder`; computes in `dtype`, holds parameters in `param_dtype`.

    Raises:
      CheckpointError: naming the key that is missing, left over, or of a shape `config.json` does not give.
    """
    config = dataclasses.replace(
        load_config(folder), dtype=dtype, param_dtype=param_dtype, scan_layers=scan_layers, remat=remat
    )
    graphdef, shapes, buffers = parameters.split(parameters.abstract(lambda rngs: LanguageModel(config, rngs=rngs)))
    return parameters.merge(graphdef, _load_parameters(Path(folder), config, shapes), buffers)


def _load_parameters(
    folder: Path, config: LanguageModelConfig, shapes: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """One of our arrays at a time, so that no second copy of the whole model is ever in memory."""
    files = _files_by_key(folder)
    tensors = list(_tensors(config))
    missing = sorted({tensor.key for tensor in tensors} - files.keys())
    left_over = sorted(files.keys() - {tensor.key for tensor in tensors})
    left_over = [key for key in left_over if not DERIVED.fullmatch(key)]
    if missing or left_over:
        raise CheckpointError(
            f"{folder}: the weights do not match {CONFIG_NAME}. "
            f"Missing: {_some(missing)}. Left over: {_some(left_over)}."
        )
    by_path: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        by_path.setdefault(tensor.path, []).append(tensor)
    loaded = {}
    for path, parts in by_path.items():
        array = np.empty(shapes[path].shape, shapes[path].dtype)
        for part in parts:
            place = array if part.layer is None else array[part.layer]
            place[...] = _read(files[part.key], part, place.shape)
        loaded[path] = jnp.asarray(array)
    return loaded


def _read(file: Path, tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """Their tensor in our order of dimensions."""
    with safe_open(file, framework="numpy") as handle:
        values = handle.get_tensor(tensor.key)
    expected = _their_shape(shape, tensor.inputs)
    if values.shape != expected:
        raise CheckpointError(
            f"{file}: {tensor.key} has shape {list(values.shape)}; {CONFIG_NAME} makes it {list(expected)}."
        )
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise CheckpointError(f"{file}: {tensor.key} has dtype {values.dtype}; quantised weights are not supported.")
    return values if tensor.inputs is None else values.T.reshape(shape)


def _files_by_key(folder: Path) -> dict[str, Path]:
    if (folder / INDEX_NAME).exists():
        index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    else:
        names = [WEIGHTS_NAME]
    found = {}
    for name in names:
        try:
            with safe_open(folder / name, framework="numpy") as handle:
                found.update(dict.fromkeys(handle.keys(), folder / name))
        except FileNotFoundError:
            raise CheckpointError(f"{folder} has no {name}: weights are read from safetensors only.") from None
        except SafetensorError as error:
            raise CheckpointError(f"{folder / name} cannot be read, perhaps cut short: {error}") from error
    return found


def _some(keys: list[str]) -> str:
    return "none" if not keys else ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def save_language_model(
    model: LanguageModel,
    folder: str | Path,
    tokenizer_path: str | Path | None = None,
    *,
    bos_id: int = 1,
    eos_id: int = 2,
    max_shard_bytes: int = 5 * 2**30,
) -> None:
    """Writes `model` as a Hugging Face Llama, in the dtype of its parameters, with a copy of its tokenizer.

    Raises:
      CheckpointError: `folder` holds weights already; two sets in one folder would be read as one.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} already holds safetensors: choose an empty folder.")
    _, ours, _ = parameters.split(model)
    shards: list[list[Tensor]] = [[]]
    free = max_shard_bytes
    for tensor in _tensors(model.config):
        size = ours[tensor.path].nbytes // (1 if tensor.layer is None else model.config.num_layers)
        if shards[-1] and size > free:
            shards.append([])
            free = max_shard_bytes
        shards[-1].append(tensor)
        free -= size
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = WEIGHTS_NAME if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        weights = {tensor.key: _write(ours[tensor.path], tensor) for tensor in shard}
        save_file(weights, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(weights, name))
    if len(shards) > 1:
        total = sum(array.nbytes for array in ours.values())
        _write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(folder / CONFIG_NAME, _llama_values(model.config, bos_id, eos_id))
    if tokenizer_path is not None:
        shutil.copyfile(tokenizer_path, folder / TOKENIZER_NAME)


def _write(array: jax.Array, tensor: Tensor) -> np.ndarray:
    values = np.asarray(array if tensor.layer is None else array[tensor.layer])
    if tensor.inputs is not None:
        values = values.reshape(_their_shape(values.shape, tensor.inputs)[::-1]).T
    return np.ascontiguousarray(values)


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _llama_values(config: LanguageModelConfig, bos_id: int, eos_id: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "torch_dtype": config.param_dtype,
    }

"""LoRA adapters alone, in the layout of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

PEFT adapts the base model's modules, so the family's table says what they are called. GPT-2's `c_attn` is one module,
while our q, k and v have adapters of their own: its A stacks theirs, its B is block-diagonal, its rank their sum.
"""

import json
import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from user_llm.checkpoints.families import write_config
from user_llm.checkpoints.tensors import ANEW, CheckpointError, Row, check_dtype, check_finite, open_tensors
from user_llm.checksums import checksums
from user_llm.files import read_json
from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel, LanguageModelConfig
from user_llm.models.layers import PROJECTIONS
from user_llm.models.lora import LoraConfig
from user_llm.models.parameters import Parameters

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
# Of adapter_config.json: what says that adapters are no plain LoRA; PEFT leaves it out of older files.
_OTHER_METHODS = {
    "lora_bias": False,
    "use_qalora": False,
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
    "use_bdlora": None,
}
_ALWAYS_SAID = ("peft_type", "r", "lora_alpha")
_LEAVE_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal")
MAP = re.compile(r"(?P<module>.*)/(?P<target>[a-z]+)_[A-Z]+")


class Adapter(NamedTuple):
    """One of ours: its paths, the row of stacked layers, and its part of PEFT's A `[rank, in]` and B `[out, rank]`."""

    module: str
    a_path: str
    b_path: str
    layer: int | None
    ranks: slice
    outputs: slice
    whole: tuple[int, int]  # rank and outputs of the module


def save_adapters(values: Parameters, config: LanguageModelConfig, folder: str | Path) -> None:
    """Writes the adapters among `values`, the flat parameters of a language model with `config.lora`.

    Raises:
      CheckpointError: the config has no `lora`, or is of no family of transformers, whose modules PEFT would adapt.
    """
    folder = Path(folder)
    rows = _rows(config)
    modules: dict[str, np.ndarray] = {}
    for adapter in _adapters(rows, config):
        a, b = (np.asarray(value) for value in _pick(values, adapter))
        a, b = a.reshape(-1, a.shape[-1]).T, b.reshape(len(b), -1).T
        rank, outputs = adapter.whole
        a_key, b_key = _keys(adapter)
        modules.setdefault(a_key, np.empty((rank, a.shape[1]), a.dtype))[adapter.ranks] = a
        modules.setdefault(b_key, np.zeros((outputs, rank), b.dtype))[adapter.outputs, adapter.ranks] = b
    folder.mkdir(parents=True, exist_ok=True)
    save_file(modules, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    settings = {**_settings(rows, config), "task_type": "CAUSAL_LM", "target_modules": _modules(rows)}
    (folder / CONFIG_NAME).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def content(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The checksums, by name, of the files that `load_adapters` reads.

    Raises:
      CheckpointError: one of them is missing.
    """
    return checksums(folder, [file.name for file in _files(Path(folder))])


def _files(folder: Path) -> tuple[Path, Path]:
    """Settings and weights."""
    files = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: expected a folder that PEFT or we saved.")
    return files


def load_adapters(folder: str | Path, config: LanguageModelConfig) -> Parameters:
    """The adapters in `folder` as flat parameters of a language model with `config.lora`, in its `param_dtype`.

    Raises:
      CheckpointError: naming the file and the setting or key that differs from what `config.lora` makes.
    """
    folder = Path(folder)
    rows = _rows(config)
    shapes = parameters.split(parameters.abstract(lambda rngs: LanguageModel(config, rngs=rngs)))[1]
    settings_file, weights_file = _files(folder)
    _check_settings(settings_file, _settings(rows, config))
    modules = _read(weights_file)
    adapters = list(_adapters(rows, config))
    wanted = {key for adapter in adapters for key in _keys(adapter)}
    if differing := sorted(wanted ^ modules.keys()):
        state = "missing" if differing[0] in wanted else "left over"
        raise CheckpointError(
            f"{folder / WEIGHTS_NAME}: {differing[0]} is {state} ({len(differing)} in all); lora.targets is "
            f"{_lora(config).targets}."
        )
    loaded: dict[str, np.ndarray] = {}
    rest = {key: modules[key].copy() for adapter in adapters for key in _keys(adapter)[1:]}
    for adapter in adapters:
        a_key, b_key = _keys(adapter)
        for path in (adapter.a_path, adapter.b_path):
            loaded.setdefault(path, np.empty(shapes[path].shape, shapes[path].dtype))
        a, b = _pick(loaded, adapter)
        rank, outputs = adapter.whole
        for key, expected in ((a_key, (rank, a[..., 0].size)), (b_key, (outputs, rank))):
            if modules[key].shape != expected:
                raise CheckpointError(
                    f"{folder / WEIGHTS_NAME}: {key} has shape {list(modules[key].shape)}; expected {list(expected)}."
                )
        a[...] = modules[a_key][adapter.ranks].T.reshape(a.shape)
        b[...] = modules[b_key][adapter.outputs, adapter.ranks].T.reshape(b.shape)
        for key, values in ((a_key, a), (b_key, b)):
            check_finite(values, f"{folder / WEIGHTS_NAME}: {key}")
        rest[b_key][adapter.outputs, adapter.ranks] = 0
    for key, values in rest.items():
        if values.any():
            raise CheckpointError(
                f"{folder / WEIGHTS_NAME}: {key} joins query, key and value; only adapters of each apart can be read."
            )
    return {path: jnp.asarray(value) for path, value in loaded.items()}


def _check_settings(file: Path, wanted: Mapping[str, Any]) -> None:
    found = read_json(file, ANEW)
    for key, value in {**wanted, **_OTHER_METHODS}.items():
        given = found.get(key)
        if given != value and (given is not None or key in _ALWAYS_SAID):
            raise CheckpointError(f"{file}: {key} is {reprlib.repr(given)}; this model needs {value!r}.")
    if found.get("init_lora_weights") not in _LEAVE_THE_BASE:
        raise CheckpointError(
            f"{file}: init_lora_weights is {reprlib.repr(found['init_lora_weights'])}, which changes the base model, "
            "too: let PEFT convert these adapters to plain ones (path_initial_model_for_weight_conversion)."
        )


def _read(file: Path) -> dict[str, np.ndarray]:
    with open_tensors(file) as handle:
        for key in handle.keys():  # noqa: SIM118
            check_dtype(handle.get_slice(key), f"{file}: {key}")
        return {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118


def _lora(config: LanguageModelConfig) -> LoraConfig:
    if config.lora is None:
        raise CheckpointError("config.lora is None: a model without adapters has none to save or load.")
    return config.lora


def _rows(config: LanguageModelConfig) -> dict[str, Row]:
    """Target → the family's row of its weight."""
    targets = _lora(config).targets
    family, _ = write_config(config)
    matches = ((MAP.fullmatch(row.ours), row) for row in family.rows)
    rows = {match["target"]: row for match, row in matches if match and match["target"] in PROJECTIONS}
    if unknown := [target for target in targets if target not in rows]:
        raise CheckpointError(f"lora.targets names {unknown[0]!r}; this model has {', '.join(rows)}.")
    return {target: rows[target] for target in targets}


def _module(row: Row) -> str:
    """The module's name inside its layer, as self_attn.q_proj: the last part may serve twice (GPT-2's c_proj)."""
    return row.theirs.partition("{layer}.")[2].removesuffix(".weight")


def _modules(rows: dict[str, Row]) -> list[str]:
    return sorted({_module(row) for row in rows.values()})


def _settings(rows: dict[str, Row], config: LanguageModelConfig) -> dict[str, Any]:
    """What adapter_config.json says of how a module is adapted."""
    lora = _lora(config)
    counts = {name: sum(_module(row) == name for row in rows.values()) for name in _modules(rows)}
    shared = {name: count for name, count in counts.items() if count > 1}
    return {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "rank_pattern": {name: count * lora.rank for name, count in shared.items()},
        "alpha_pattern": {name: count * lora.alpha for name, count in shared.items()},
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "modules_to_save": None,
        "layers_to_transform": [*range(lora.first_layer, config.num_layers)] if lora.first_layer else None,
        "fan_in_fan_out": not next(iter(rows.values())).transposed,
    }


def _adapters(rows: dict[str, Row], config: LanguageModelConfig) -> Iterator[Adapter]:
    rank = _lora(config).rank
    sizes = {"N": config.num_heads, "K": config.num_kv_heads, "H": config.head_dim}
    sizes |= {"D": config.width, "F": config.hidden}
    for layer in range(_lora(config).first_layer, config.num_layers):
        for target, row in rows.items():
            inputs, outputs = PROJECTIONS[target]
            ours = row.ours.replace("{layer}/", "" if config.scan_layers else f"{layer}/")
            prefix = f"{ours.rpartition('/')[0]}/lora/{target}"
            beside = sorted(other.part for other in rows.values() if other.theirs == row.theirs)
            place, size = beside.index(row.part), math.prod(sizes[letter] for letter in outputs)
            yield Adapter(
                module=row.theirs.format(layer=layer).removesuffix(".weight"),
                a_path=f"{prefix}/a_{inputs}R",
                b_path=f"{prefix}/b_R{outputs}",
                layer=layer if config.scan_layers else None,
                ranks=slice(place * rank, (place + 1) * rank),
                outputs=slice(row.part * size, (row.part + 1) * size),
                whole=(len(beside) * rank, row.parts * size),
            )


def _keys(adapter: Adapter) -> tuple[str, str]:
    a, b = (f"base_model.model.{adapter.module}.lora_{half}.weight" for half in "AB")
    return a, b


def _pick(values: dict[str, Any], adapter: Adapter) -> tuple[Any, Any]:
    """A and B of one adapter, of its layer where layers are stacked."""
    pair = values[adapter.a_path], values[adapter.b_path]
    return pair if adapter.layer is None else tuple(value[adapter.layer] for value in pair)

"""Language models in the Hugging Face layout: `config.json`, safetensors (one file or shards), tokenizer files.

What the options and keys of a family mean is in `families.py`, how a tensor of theirs becomes ours in `tensors.py`. A
GGUF file is read as if it were such a folder: `gguf/`.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save_file

from user_llm.checkpoints.families import Family, family_of, read_config, write_config
from user_llm.checkpoints.gguf.options import read_options
from user_llm.checkpoints.gguf.weights import open_weights
from user_llm.checkpoints.tensors import (
    ANEW,
    CheckpointError,
    ChosenRows,
    Shapes,
    Tensor,
    check_dtype,
    open_tensors,
    read_parameters,
    tensors_of,
)
from user_llm.checksums import checksums
from user_llm.config import CHOICES
from user_llm.errors import UserError
from user_llm.files import read_json
from user_llm.gguf_header import is_gguf, read_header
from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel, LanguageModelConfig
from user_llm.models.lora import merge_lora
from user_llm.models.parameters import Parameters
from user_llm.parallel import rules

CONFIG_NAME, WEIGHTS_NAME, INDEX_NAME = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER_NAMES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)
TABLES = ("embedding_VD", "head_VD")  # with a row for each piece of the vocabulary
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def resolve(name: str | Path) -> Path:
    """The folder or GGUF file of a model: `name` itself, or where the hub's "organisation/model" lies once downloaded.

    Raises:
      CheckpointError: there is no such folder, and the hub cannot be asked, or has no such model for this user.
    """
    is_path = isinstance(name, (str, os.PathLike)) and str(name)
    if is_path and (folder := Path(name)).is_dir():
        if (exported := folder / "llm" / "huggingface").is_dir():
            raise CheckpointError(f"{folder} is a run's workdir: name its language model, {exported}.")
        return folder
    if is_path and is_gguf(name):
        if not Path(name).is_file():
            raise CheckpointError(f"{name}: no such file; expected a GGUF file, or a Hugging Face folder.")
        return Path(name)
    if not HUB_NAME.fullmatch(str(name)):
        raise CheckpointError(f"{name!r}: no such folder; expected one, or a hub name such as google/gemma-3-270m.")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"{name}: no such folder. To read it as a name on the Hugging Face hub, pip install -e '.[hub]'."
        ) from None
    try:
        return Path(snapshot_download(str(name), allow_patterns=[*TOKENIZER_NAMES, CONFIG_NAME, "model*.safetensors*"]))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name}: no such folder, and the Hugging Face hub did not give it: {error}. A model behind a licence "
            "needs `hf auth login`; without a network, download it elsewhere and name its folder."
        ) from error


def load_config(name: str | Path) -> LanguageModelConfig:
    """The shape of the language model `name` (folder, hub name, GGUF file, or a config.json alone).

    Raises:
      CheckpointError: no config.json, or one with an option we do not compute: never ignored.
    """
    file = _options_file(Path(name) if Path(name).is_file() else resolve(name))
    return read_config(_read_options(file), file)


def _options_file(place: Path) -> Path:
    return place / CONFIG_NAME if place.is_dir() else place


def _read_options(file: Path) -> dict[str, Any]:
    return read_options(read_header(file)) if is_gguf(file) else _read_json(file)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return read_json(file, ANEW)
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent} has no {file.name}: expected a Hugging Face model folder.") from None


def content(name: str | Path) -> dict[str, dict[str, Any]]:
    """The checksums, by name, of the files that loading `name` (folder, hub name, GGUF file, or a config.json
    alone) reads.

    Raises:
      CheckpointError: one of them is missing.
    """
    if Path(name).is_file():
        return checksums(Path(name).parent, [Path(name).name])
    folder = resolve(name)
    _read_json(folder / CONFIG_NAME)
    index = [INDEX_NAME] if _has_index(folder) else []
    return checksums(folder, [CONFIG_NAME, *index, *_weight_names(folder)])


def _has_index(folder: Path) -> bool:
    """Whether the weights are where an index says: where there is one file, `transformers` looks for no index."""
    return (folder / INDEX_NAME).exists() and not (folder / WEIGHTS_NAME).is_file()


def load_language_model(
    name: str | Path,
    *,
    dtype: str = "float32",
    param_dtype: str = "float32",
    scan_layers: bool = False,
    remat: bool = False,
) -> LanguageModel:
    """Reads the model `name` (folder, GGUF file or hub name); computes in `dtype`, holds parameters in `param_dtype`.

    Raises:
      UserError: we do not compute in such a dtype.
      CheckpointError: as `load_parameters`.
    """
    folder = resolve(name)
    for argument, value in (("dtype", dtype), ("param_dtype", param_dtype)):
        choices = CHOICES[f"compute.{argument}"]
        if not isinstance(value, str) or value not in choices:
            raise UserError(f"{argument} must be {' or '.join(map(repr, choices))}, got {value!r}.")
    config = dataclasses.replace(
        load_config(folder), dtype=dtype, param_dtype=param_dtype, scan_layers=scan_layers, remat=remat
    )
    graphdef, _, buffers = parameters.split(_abstract(config))
    return parameters.merge(graphdef, load_parameters(folder, config), buffers)


def _abstract(config: LanguageModelConfig) -> LanguageModel:
    return parameters.abstract(lambda rngs: LanguageModel(config, rngs=rngs))


def load_parameters(
    name: str | Path, config: LanguageModelConfig, mesh: Mesh | None = None, *, rows: np.ndarray | None = None
) -> Parameters:
    """The parameters of the model `name` (folder, GGUF file or hub name), straight from its files onto the devices.

    Args:
      config: from `load_config`, with dtypes and layout of choice; adapters of its `lora` are no part of a checkpoint.
      mesh: where `parallel/rules.py` puts them; each device's slice is read apart. None: whole, on the default device.
      rows: int `[K]`, ascending, those of the embedding table (and of the head's, where they are two) to read; the
        config's `vocab_size` is K then. None: all.

    Raises:
      CheckpointError: naming the key that is missing, left over, of a shape `config.json` does not give, or that holds
        NaN or infinity.
    """
    model = _abstract(dataclasses.replace(config, lora=None))
    shapes = parameters.split(model)[1]
    shardings = None if mesh is None else rules.parameter_shardings(shapes, parameters.logical_axes(model), mesh)
    vocab_size = config.vocab_size if rows is None else load_config(name).vocab_size
    with _open_model(name, config, shapes, vocab_size) as (tensors, slices, files):
        if rows is not None:
            tables = [tensor.key for tensor in tensors if tensor.path in TABLES]
            slices |= {key: ChosenRows(slices[key], rows) for key in tables}
        return read_parameters(tensors, slices, files, shapes, shardings)


def load_tables(name: str | Path, config: LanguageModelConfig) -> Parameters:
    """The embedding table and, where it is another, the head's of the model `name`, with all their rows.

    Args:
      config: as for `load_parameters`; its `vocab_size` need not be the model's.

    Raises:
      CheckpointError: as `load_parameters`.
    """
    config = dataclasses.replace(config, lora=None, vocab_size=load_config(name).vocab_size)
    shapes = parameters.split(_abstract(config))[1]
    with _open_model(name, config, shapes, config.vocab_size) as (tensors, slices, files):
        tables = [tensor for tensor in tensors if tensor.path in TABLES]
        return read_parameters(tables, slices, files, shapes, None)


@contextlib.contextmanager
def _open_model(
    name: str | Path, config: LanguageModelConfig, shapes: Shapes, vocab_size: int
) -> Iterator[tuple[list[Tensor], dict[str, Any], dict[str, Path]]]:
    """The tensors of a model with parameters `shapes`, and the slices and the files of their keys, all checked; its
    tables have `vocab_size` rows there.
    """
    place = resolve(name)
    file = _options_file(place)
    family = family_of(_read_options(file), file)
    tensors = tensors_of(family.rows, shapes, config.num_layers, config.scan_layers)
    whole = {path: jax.ShapeDtypeStruct((vocab_size, config.width), config.param_dtype) for path in TABLES}
    with _open_weights(place, config.param_dtype) as (handles, files):
        names = _match(place, family, tensors, files)
        file_of = {key: files[name] for key, name in names.items()}
        slices = {key: handles[file_of[key]].get_slice(name) for key, name in names.items()}
        for tensor in tensors:
            _check(slices[tensor.key], tensor, {**shapes, **whole}, file_of[tensor.key])
        yield tensors, slices, file_of


@contextlib.contextmanager
def _open_weights(place: Path, dtype: str) -> Iterator[tuple[dict[Path, Any], dict[str, Path]]]:
    """File → its open handle, and key → its file, of all weights in `place`; those of GGUF come as `dtype`."""
    with contextlib.ExitStack() as stack:
        if is_gguf(place):
            handles = {place: stack.enter_context(open_weights(place, dtype))}
        else:
            handles = {place / name: stack.enter_context(open_tensors(place / name)) for name in _weight_names(place)}
        files: dict[str, Path] = {}
        for file, handle in handles.items():
            for key in handle.keys():  # noqa: SIM118
                if key in files:
                    raise CheckpointError(f"{key} stands in both {files[key]} and {file.name}: {ANEW}")
                files[key] = file
        yield handles, files


def _weight_names(folder: Path) -> list[str]:
    """The names of the safetensors in `folder`: one, or those in the index."""
    names = [WEIGHTS_NAME]
    if _has_index(folder):
        index = folder / INDEX_NAME
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} has no weight_map from keys to files: {ANEW}")
        for key, name in weight_map.items():
            if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
                raise CheckpointError(f"{index}: {key} is in {name!r}; expected the name of a file beside it: {ANEW}")
        names = sorted(set(weight_map.values()))
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name} (a file): weights are read from safetensors only.")
    return names


def _match(place: Path, family: Family, tensors: Sequence[Tensor], files: Mapping[str, Path]) -> dict[str, str]:
    """The table's key → the key in the files, for exactly the tensors the model has."""
    names = {}
    for name in files:
        key = name
        for pattern, replacement in family.renames:
            key = re.sub(pattern, replacement, key)
        names[key] = name
    wanted = {tensor.key for tensor in tensors}
    # With tied embeddings some files store the head besides; transformers does not read it either.
    heads = {row.theirs for row in family.rows if row.ours == "head_VD"}
    missing = sorted(wanted - names.keys())
    left_over = sorted(
        name
        for key, name in names.items()
        if key not in wanted and key not in heads and not re.fullmatch(family.ignored, key)
    )
    if missing or left_over:
        raise CheckpointError(
            f"{place}: the weights do not match {_told(place)}. "
            f"Missing: {_some(missing)}. Left over: {_some(left_over)}."
        )
    return {key: names[key] for key in wanted}


def _told(place: Path) -> str:
    """What says the shapes."""
    return "what its metadata say" if is_gguf(place) else CONFIG_NAME


def _check(theirs: Any, tensor: Tensor, shapes: Shapes, file: Path) -> None:
    shape = shapes[tensor.path].shape
    expected = tensor.row.their_shape(shape if tensor.layer is None else shape[1:])
    if tuple(theirs.get_shape()) != expected:
        raise CheckpointError(
            f"{file}: {tensor.key} has shape {theirs.get_shape()}; {_told(file)} makes it {list(expected)}."
        )
    check_dtype(theirs, f"{file}: {tensor.key}")


def _some(keys: list[str]) -> str:
    return "none" if not keys else ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def save_language_model(
    model: LanguageModel,
    folder: str | Path,
    tokenizer_path: str | Path | None = None,
    *,
    bos_id: int | None = None,
    eos_id: int | Sequence[int] | None = None,
    max_shard_bytes: int = 5 * 2**30,
) -> None:
    """Writes `model` as the `transformers` model that computes the same, in the dtype of its parameters.

    Args:
      model: one with LoRA adapters is written with them merged.
      folder: made if need be; may hold no weights yet.
      tokenizer_path: copied along: a tokenizer.model or tokenizer.json (under any name), or a folder with either.
      bos_id, eos_id: of the tokenizer, for config.json; None and -1 leave it to what transformers assumes.
      max_shard_bytes: size of a file, which only a single larger tensor exceeds.

    Raises:
      CheckpointError: no family of transformers computes this config, or `folder` holds weights already (two sets in
        one folder would be read as one).
    """
    folder = Path(folder)
    config = model.config
    ours = parameters.split(model)[1]
    if config.lora is not None:
        ours, config = merge_lora(ours, config.lora), dataclasses.replace(config, lora=None)
    family, values = write_config(config)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} already holds safetensors: choose an empty folder.")
    by_key: dict[str, list[Tensor]] = {}
    for tensor in tensors_of(family.rows, ours, config.num_layers, config.scan_layers):
        by_key.setdefault(tensor.key, []).append(tensor)
    shards = _shards(by_key, ours, max_shard_bytes)
    weight_map = {}
    for number, keys in enumerate(shards, start=1):
        name = WEIGHTS_NAME if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({key: _write(by_key[key], ours) for key in keys}, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(keys, name))
    if len(shards) > 1:
        total = sum(array.nbytes for array in ours.values())
        _write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})
    special = {"bos_token_id": bos_id, "eos_token_id": eos_id}
    values |= {name: value for name, value in special.items() if value not in (None, -1)}
    _write_json(folder / CONFIG_NAME, {**values, "torch_dtype": config.param_dtype})
    if tokenizer_path is not None:
        _copy_tokenizer(Path(tokenizer_path), folder)


def _shards(by_key: Mapping[str, Sequence[Tensor]], ours: Parameters, max_bytes: int) -> list[list[str]]:
    """Keys file by file, in the table's order."""
    shards: list[list[str]] = [[]]
    free = max_bytes
    for key, parts in by_key.items():
        sizes = [ours[part.path].nbytes // (1 if part.layer is None else len(ours[part.path])) for part in parts]
        if shards[-1] and sum(sizes) > free:
            shards.append([])
            free = max_bytes
        shards[-1].append(key)
        free -= sum(sizes)
    return shards


def _write(parts: Sequence[Tensor], ours: Mapping[str, jax.Array]) -> np.ndarray:
    """One of their tensors; parts of a fused one lie side by side along its outputs, as GPT-2's do: the last axis."""
    arrays = [ours[part.path] if part.layer is None else ours[part.path][part.layer] for part in parts]
    written = [part.row.write(np.asarray(array)) for part, array in zip(parts, arrays, strict=True)]
    return np.ascontiguousarray(written[0] if len(written) == 1 else np.concatenate(written, axis=-1))


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _copy_tokenizer(source: Path, folder: Path) -> None:
    if source.is_dir():
        for file in (source / name for name in TOKENIZER_NAMES):
            if file.exists():
                shutil.copyfile(file, folder / file.name)
    else:
        shutil.copyfile(source, folder / ("tokenizer.json" if source.suffix == ".json" else "tokenizer.model"))

"""What options of a `config.json` mean: entries of a family's table (`families.py`), each read and written alike.

Meanings and defaults are those of `transformers`, in the forms its versions 4 and 5 write.
"""

import dataclasses
import math
import reprlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from user_llm.checkpoints.tensors import CheckpointError
from user_llm.models.language_model import LanguageModelConfig
from user_llm.models.layers import RopeScaling

Values = Mapping[str, Any]
REQUIRED = object()
_LARGEST = 2**31 - 1  # of a whole number: what an index on a device can be


class Entry(Protocol):
    """Some options of `config.json` and the fields they make."""

    def read(self, values: Values, fields: Values) -> dict[str, Any]:
        """Fields from options; `fields` are those of the entries before it."""

    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        """Options from fields."""


@dataclass(frozen=True)
class Key:
    """One option, one field.

    `default`: what an absent option means, or a function of earlier fields, which null means too. `most`: the largest
    that it may be.
    """

    theirs: str
    ours: str
    default: Any = REQUIRED
    to_ours: Callable[[Any], Any] = lambda value: value
    to_theirs: Callable[[Any], Any] = lambda value: value
    nullable: bool = False  # null is a value of its own, not absence
    most: float = _LARGEST

    def read(self, values: Values, fields: Values) -> dict[str, Any]:
        value = values.get(self.theirs, self.default)
        if value is REQUIRED:
            raise CheckpointError(f"key {self.theirs!r} is missing.")
        if callable(self.default) and value in (None, self.default):
            value = self.default(fields)
        if value is None and self.nullable:
            return {self.ours: None}
        _check(self.theirs, value, FIELD_TYPES[self.ours], most=self.most)
        return {self.ours: self.to_ours(value)}

    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        value = getattr(config, self.ours)
        return {self.theirs: None if value is None else self.to_theirs(value)}


FIELD_TYPES = {field.name: field.type for field in dataclasses.fields(LanguageModelConfig)}


def _check(name: str, value: Any, kind: Any, *, least: float = 0.0, most: float = _LARGEST) -> None:
    """Raises where `value` is not of the type `kind`; of a number, it must be `least` to `most`, and above 0."""
    if kind is int:
        expected, is_it = f"a whole number from 1 to {most:.0f}", type(value) is int and 1 <= value <= most
    elif kind in (float, float | None):
        expected = f"a number of at least {least:g}" if least else "a number above 0"
        is_it = type(value) in (int, float) and value > 0 and least <= value < math.inf and value <= sys.float_info.max
    else:
        expected, is_it = {bool: "true or false", str: "a name"}[kind], type(value) is kind
    if not is_it:
        raise CheckpointError(f"{name} is {reprlib.repr(value)}; expected {expected}.")


def section(values: Values, name: str) -> Values:
    """The object under a key; empty where it is absent or null."""
    found = values.get(name)
    if found is not None and not isinstance(found, Mapping):
        raise CheckpointError(f"{name} is {reprlib.repr(found)}; expected an object or null.")
    return found or {}


@dataclass(frozen=True)
class Only:
    """An option of which we compute one value only (or leave it out, which means that)."""

    theirs: str
    value: Any

    def read(self, values: Values, fields: Values) -> dict[str, Any]:
        if (found := values.get(self.theirs)) not in (None, self.value):
            raise CheckpointError(f"{self.theirs} is {reprlib.repr(found)}; only {self.value!r} is supported.")
        return {}

    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Always:
    """Fields all models of the family share: values, or functions of earlier fields."""

    fields: Values

    def read(self, values: Values, fields: Values) -> dict[str, Any]:
        return {name: value(fields) if callable(value) else value for name, value in self.fields.items()}

    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class LocalLayers:
    """Which layers attend in a sliding window. `every`: each such layer is global, where config.json lists none."""

    every: int

    def read(self, values: Values, fields: Values) -> dict[str, Any]:
        count, every = fields["num_layers"], self.every
        for name in ("_sliding_window_pattern", "sliding_window_pattern"):
            if (found := values.get(name)) is not None:
                _check(name, found, int)
                every = found
        kinds = values.get("layer_types")
        if kinds is None:
            kinds = [_LOCAL if (n + 1) % every else _GLOBAL for n in range(count)]
        if not isinstance(kinds, list) or len(kinds) != count or any(kind not in (_LOCAL, _GLOBAL) for kind in kinds):
            raise CheckpointError(
                f"layer_types is {reprlib.repr(kinds)}; expected {_LOCAL!r} or {_GLOBAL!r} for each of the {count} "
                "layers."
            )
        local = tuple(kind == _LOCAL for kind in kinds)
        if not any(local):
            return {"local_layers": (), "sliding_window": None}
        window = values.get("sliding_window", 4096)
        _check("sliding_window", window, int)
        return {"local_layers": local, "sliding_window": window}

    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        local = config.local_layers or (False,) * config.num_layers
        kinds = [_LOCAL if is_local else _GLOBAL for is_local in local]
        return {"layer_types": kinds, "sliding_window": config.sliding_window}


@dataclass(frozen=True)
class GlobalLayers:
    """No layer attends in a sliding window: of families that may have such, of which we compute none."""

    def read(self, values: Values, fields: Values) -> dict[str, Any]:
        kinds = values.get("layer_types")
        if kinds is not None and (not isinstance(kinds, list) or any(kind != _GLOBAL for kind in kinds)):
            raise CheckpointError(f"layer_types is {reprlib.repr(kinds)}; only {_GLOBAL!r} is supported.")
        return {}

    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Rope:
    """Rotary positions, in the form of transformers 4 (`rope_theta`, `rope_scaling`) and of 5 (`rope_parameters`).

    `local`: base of the layers with a sliding window, where the family has another for them (Gemma 3).
    """

    theta: float = 10000.0
    local: float | None = None

    def read(self, values: Values, fields: Values) -> dict[str, Any]:
        new, old = section(values, "rope_parameters"), section(values, "rope_scaling")
        everywhere = new if self.local is None else section(new, "full_attention")
        rope = {**everywhere, **old}
        name = "rope_scaling" if old else "rope_parameters"
        theta: Any = rope.get("rope_theta", values.get("rope_theta", self.theta))
        _check("rope_theta", theta, float, least=1.0)
        read: dict[str, Any] = {"rope_theta": float(theta), "rope_scaling": self._scaling(name, rope)}
        if self.local is not None and fields["local_layers"]:
            local = section(new, "sliding_attention")
            if self._scaling("rope_parameters.sliding_attention", local) is not None:
                raise CheckpointError(f"rope_parameters.sliding_attention is {local!r}; only 'default' is supported.")
            theta = local.get("rope_theta", values.get("rope_local_base_freq", self.local))
            _check("rope_local_base_freq", theta, float, least=1.0)
            read["local_rope_theta"] = float(theta)
        return read

    @staticmethod
    def _scaling(name: str, rope: Values) -> RopeScaling | None:
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", *_SCALINGS):
            raise CheckpointError(
                f"{name} is of type {reprlib.repr(kind)}; only the types 'default', "
                f"{' and '.join(map(repr, _SCALINGS))} are supported."
            )
        if (share := rope.get("partial_rotary_factor", 1.0)) != 1.0:
            raise CheckpointError(f"{name} turns {reprlib.repr(share)} of a head; only whole heads are supported.")
        if kind == "default":
            return None
        for key in _SCALINGS[kind].values():
            _check(f"{name}.{key}", rope.get(key), float, least=1.0 if key == "factor" else 0.0)
        return RopeScaling(kind=kind, **{ours: rope[theirs] for ours, theirs in _SCALINGS[kind].items()})

    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        values: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_scaling": None}
        if (scaling := config.rope_scaling) is not None:
            numbers = {theirs: getattr(scaling, ours) for ours, theirs in _SCALINGS[scaling.kind].items()}
            values["rope_scaling"] = {"rope_type": scaling.kind, **numbers}
        if config.local_rope_theta is not None:
            values["rope_local_base_freq"] = config.local_rope_theta
        return values


_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_SCALINGS = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_frequency_factor": "low_freq_factor",
        "high_frequency_factor": "high_freq_factor",
        "original_max_length": "original_max_position_embeddings",
    },
}

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def activation(theirs: str, default: str, **other: str) -> Key:
    """The MLP's nonlinearity; `other`: names that mean something else in this family."""
    names = {**_ACTIVATIONS, **other}

    def to_ours(name: str) -> str:
        if name not in names:
            raise CheckpointError(f"{theirs} is {reprlib.repr(name)}; supported: {', '.join(map(repr, names))}.")
        return names[name]

    # Of several names for one, that of the family, else the one listed first.
    to_theirs = {ours: name for name, ours in reversed(_ACTIVATIONS.items())} | {names[default]: default}
    return Key(theirs, "activation", default, to_ours, to_theirs.__getitem__)


def width_per_head(fields: Values) -> int:
    if fields["width"] % fields["num_heads"]:
        raise CheckpointError(f"a width of {fields['width']} does not divide among {fields['num_heads']} heads.")
    return fields["width"] // fields["num_heads"]

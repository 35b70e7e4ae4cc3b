"""What options of a `config.json` mean: entries of a family's table (`families.py`), each read and written alike.

Meanings and defaults are those of `transformers`, in the forms its versions 4 and 5 write.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from user_llm.checkpoints.tensors import CheckpointError
from user_llm.models.language_model import LanguageModelConfig
from user_llm.models.layers import RopeScaling

Values = Mapping[str, Any]
REQUIRED = object()


class Entry(Protocol):
    """Some options of `config.json` and the fields they make."""

    def read(self, values: Values, fields: Values) -> dict[str, Any]:
        """Fields from options; `fields` are those of the entries before it."""

    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        """Options from fields."""


@dataclass(frozen=True)
class Key:
    """One option, one field. `default`: what an absent option means, or a function of earlier fields."""

    theirs: str
    ours: str
    default: Any = REQUIRED
    to_ours: Callable[[Any], Any] = lambda value: value
    to_theirs: Callable[[Any], Any] = lambda value: value
    nullable: bool = False  # null is a value of its own, not absence

    def read(self, values: Values, fields: Values) -> dict[str, Any]:
        value = values.get(self.theirs)
        if value is None and not (self.nullable and self.theirs in values):
            if self.default is REQUIRED:
                raise CheckpointError(f"key {self.theirs!r} is missing.")
            value = self.default(fields) if callable(self.default) else self.default
        if value is None:
            return {self.ours: None}
        _check(self.theirs, value, FIELD_TYPES[self.ours])
        return {self.ours: self.to_ours(value)}

    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        value = getattr(config, self.ours)
        return {self.theirs: None if value is None else self.to_theirs(value)}


FIELD_TYPES = {field.name: field.type for field in dataclasses.fields(LanguageModelConfig)}
_KINDS = {
    int: ("a whole number of at least 1", lambda value: type(value) is int and value >= 1),
    float: ("a number above 0", lambda value: type(value) in (int, float) and value > 0),
    bool: ("true or false", lambda value: type(value) is bool),
    str: ("a name", lambda value: type(value) is str),
}
_KINDS[float | None] = _KINDS[float]


def _check(name: str, value: Any, kind: Any) -> None:
    expected, is_it = _KINDS[kind]
    if not is_it(value):
        raise CheckpointError(f"{name} is {value!r}; expected {expected}.")


@dataclass(frozen=True)
class Only:
    """An option of which we compute one value only (or leave it out, which means that)."""

    theirs: str
    value: Any

    def read(self, values: Values, fields: Values) -> dict[str, Any]:
        if (found := values.get(self.theirs)) not in (None, self.value):
            raise CheckpointError(f"{self.theirs} is {found!r}; only {self.value!r} is supported.")
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
        count = fields["num_layers"]
        every = values.get("sliding_window_pattern") or values.get("_sliding_window_pattern") or self.every
        kinds = values.get("layer_types")
        if kinds is None:
            kinds = ["sliding_attention" if (n + 1) % every else "full_attention" for n in range(count)]
        if len(kinds) != count or not {"sliding_attention", "full_attention"}.issuperset(kinds):
            raise CheckpointError(
                f"layer_types is {kinds!r}; expected 'sliding_attention' or 'full_attention' for each of the {count} "
                "layers."
            )
        local = tuple(kind == "sliding_attention" for kind in kinds)
        if not any(local):
            return {"local_layers": (), "sliding_window": None}
        window = values.get("sliding_window", 4096)
        _check("sliding_window", window, int)
        return {"local_layers": local, "sliding_window": window}

    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        local = config.local_layers or (False,) * config.num_layers
        kinds = ["sliding_attention" if is_local else "full_attention" for is_local in local]
        return {"layer_types": kinds, "sliding_window": config.sliding_window}


@dataclass(frozen=True)
class Rope:
    """Rotary positions, in the form of transformers 4 (`rope_theta`, `rope_scaling`) and of 5 (`rope_parameters`).

    `local`: base of the layers with a sliding window, where the family has another for them (Gemma 3).
    """

    theta: float = 10000.0
    local: float | None = None

    def read(self, values: Values, fields: Values) -> dict[str, Any]:
        new = values.get("rope_parameters") or {}
        everywhere = new if self.local is None else new.get("full_attention") or {}
        rope = {**everywhere, **(values.get("rope_scaling") or {})}
        name = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
        theta = rope.get("rope_theta", values.get("rope_theta", self.theta))
        _check("rope_theta", theta, float)
        read: dict[str, Any] = {"rope_theta": float(theta), "rope_scaling": self._scaling(name, rope)}
        if self.local is not None and fields["local_layers"]:
            local = new.get("sliding_attention") or {}
            if self._scaling("rope_parameters.sliding_attention", local) is not None:
                raise CheckpointError(f"rope_parameters.sliding_attention is {local!r}; only 'default' is supported.")
            theta = local.get("rope_theta", values.get("rope_local_base_freq", self.local))
            _check("rope_local_base_freq", theta, float)
            read["local_rope_theta"] = float(theta)
        return read

    @staticmethod
    def _scaling(name: str, rope: Values) -> RopeScaling | None:
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", *_SCALINGS) or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise CheckpointError(
                f"{name} is {dict(rope)!r}; only the types 'default', 'linear' and 'llama3' are supported, "
                "and only whole heads."
            )
        if kind == "default":
            return None
        for key in _SCALINGS[kind].values():
            _check(f"{name}.{key}", rope.get(key), float)
        return RopeScaling(kind=kind, **{ours: rope[theirs] for ours, theirs in _SCALINGS[kind].items()})

    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        values: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_scaling": None}
        if (scaling := config.rope_scaling) is not None:
            numbers = {theirs: getattr(scaling, ours) for ours, theirs in _SCALINGS[scaling.kind].items()}
            values["rope_scaling"] = {"rope_type": scaling.kind, **numbers}
        if config.local_rope_theta is not None:
            values["rope_local_base_freq"] = config.local_rope_theta
        return values


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
            raise CheckpointError(f"{theirs} is {name!r}; supported: {', '.join(map(repr, names))}.")
        return names[name]

    # Of several names for one, that of the family, else the one listed first.
    to_theirs = {ours: name for name, ours in reversed(_ACTIVATIONS.items())} | {names[default]: default}
    return Key(theirs, "activation", default, to_ours, to_theirs.__getitem__)


def width_per_head(fields: Values) -> int:
    if fields["width"] % fields["num_heads"]:
        raise CheckpointError(f"a width of {fields['width']} does not divide among {fields['num_heads']} heads.")
    return fields["width"] // fields["num_heads"]

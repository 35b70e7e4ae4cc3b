"""The families of open language models: one table each, from `config.json` and weight keys to ours and back.

A family is what `config.json` calls `model_type`. Its entries pair options with `LanguageModelConfig` fields, its rows
pair weight keys with parameter paths; what no entry reads is either of no effect on what a model computes (dropout,
initialisation) or refused by an `Only`. Meanings and defaults are those of `transformers`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from user_llm.checkpoints.tensors import CheckpointError, Row
from user_llm.models.language_model import LanguageModelConfig
from user_llm.models.layers import RopeScaling

Values = Mapping[str, Any]
# How a model is run, which no config.json says.
RUNTIME = ("scan_layers", "remat", "dtype", "param_dtype", "lora")
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
        if _FIELD_TYPES[self.ours] is int and (type(value) is not int or value < 1):
            raise CheckpointError(f"{self.theirs} is {value!r}; expected a whole number of at least 1.")
        return {self.ours: None if value is None else self.to_ours(value)}

    def write(self, config: LanguageModelConfig) -> dict[str, Any]:
        value = getattr(config, self.ours)
        return {self.theirs: None if value is None else self.to_theirs(value)}


_FIELD_TYPES = {field.name: field.type for field in dataclasses.fields(LanguageModelConfig)}


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
                f"layer_types is {kinds!r}; expected 'sliding_attention' or 'full_attention' for each of {count} layers."
            )
        local = tuple(kind == "sliding_attention" for kind in kinds)
        if not any(local):
            return {"local_layers": (), "sliding_window": None}
        window = values.get("sliding_window", 4096)
        if type(window) is not int or window < 1:
            raise CheckpointError(f"sliding_window is {window!r}; layer_types needs a whole number of at least 1.")
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
        read = {
            "rope_theta": float(rope.get("rope_theta", values.get("rope_theta", self.theta))),
            "rope_scaling": self._scaling(name, rope),
        }
        if self.local is not None and fields["local_layers"]:
            local = new.get("sliding_attention") or {}
            if self._scaling("rope_parameters.sliding_attention", local) is not None:
                raise CheckpointError(f"rope_parameters.sliding_attention is {local!r}; only 'default' is supported.")
            read["local_rope_theta"] = float(local.get("rope_theta", values.get("rope_local_base_freq", self.local)))
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
            if not isinstance(rope.get(key), (int, float)):
                raise CheckpointError(f"{name} is {dict(rope)!r}; type {kind!r} needs a number for {key!r}.")
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


def _activation(theirs: str, default: str, **other: str) -> Key:
    names = {**_ACTIVATIONS, **other}

    def to_ours(name: str) -> str:
        if name not in names:
            raise CheckpointError(f"{theirs} is {name!r}; supported: {', '.join(map(repr, names))}.")
        return names[name]

    return Key(theirs, "activation", default, to_ours, {ours: name for name, ours in _WRITTEN}.__getitem__)


_WRITTEN = (("silu", "silu"), ("relu", "relu"), ("gelu", "gelu"), ("gelu_pytorch_tanh", "gelu_tanh"))


def _width_per_head(fields: Values) -> int:
    if fields["width"] % fields["num_heads"]:
        raise CheckpointError(f"a width of {fields['width']} does not divide among {fields['num_heads']} heads.")
    return fields["width"] // fields["num_heads"]


def _entries(*special: Entry, max_length: int, tied: bool, **defaults: Any) -> tuple[Entry, ...]:
    """What all families but GPT-2 call by the same names; `defaults` are those that differ from Llama's."""
    return (
        Key("vocab_size", "vocab_size", defaults.get("vocab_size", REQUIRED)),
        Key("num_hidden_layers", "num_layers"),
        Key("hidden_size", "width"),
        Key("num_attention_heads", "num_heads", defaults.get("num_heads", REQUIRED)),
        Key("num_key_value_heads", "num_kv_heads", defaults.get("num_kv_heads", lambda fields: fields["num_heads"])),
        Key("head_dim", "head_dim", defaults.get("head_dim", _width_per_head)),
        Key("intermediate_size", "hidden"),
        Key("rms_norm_eps", "norm_eps", 1e-6),
        Key("tie_word_embeddings", "tie_embeddings", tied),
        Key("max_position_embeddings", "max_length", max_length),
        Only("quantization_config", None),
        *special,
    )


_ATTENTION_BIAS = (Key("attention_bias", "qkv_bias", False), Key("attention_bias", "output_bias", False))
_GEMMA = (
    Always({"norm": "rms_plus_one", "embedding_scale": lambda fields: fields["width"] ** 0.5}),
    Only("use_bidirectional_attention", False),
    *_ATTENTION_BIAS,
)
_GEMMA_2 = (
    *_GEMMA,
    Always({"post_norms": True}),
    _activation("hidden_activation", "gelu_pytorch_tanh"),
    Key("query_pre_attn_scalar", "query_scale", 256, lambda scalar: scalar**-0.5, lambda scale: round(scale**-2)),
)


def _softcaps(attention: float | None, final: float | None) -> tuple[Entry, ...]:
    return (
        Key("attn_logit_softcapping", "attention_softcap", attention, nullable=True),
        Key("final_logit_softcapping", "final_softcap", final, nullable=True),
    )


_LAYER = "model.layers.{layer}."
_OURS = "layers/{layer}/"
_PROJECTIONS = (
    Row(_LAYER + "self_attn.q_proj.weight", _OURS + "attention/q_DNH", 1),
    Row(_LAYER + "self_attn.k_proj.weight", _OURS + "attention/k_DKH", 1),
    Row(_LAYER + "self_attn.v_proj.weight", _OURS + "attention/v_DKH", 1),
    Row(_LAYER + "self_attn.o_proj.weight", _OURS + "attention/o_NHD", 2),
    Row(_LAYER + "self_attn.q_proj.bias", _OURS + "attention/q_bias_NH", 0),
    Row(_LAYER + "self_attn.k_proj.bias", _OURS + "attention/k_bias_KH", 0),
    Row(_LAYER + "self_attn.v_proj.bias", _OURS + "attention/v_bias_KH", 0),
    Row(_LAYER + "self_attn.o_proj.bias", _OURS + "attention/o_bias_D"),
    Row(_LAYER + "self_attn.q_norm.weight", _OURS + "attention/q_norm/scale_D"),
    Row(_LAYER + "self_attn.k_norm.weight", _OURS + "attention/k_norm/scale_D"),
    Row(_LAYER + "mlp.gate_proj.weight", _OURS + "mlp/gate_DF", 1),
    Row(_LAYER + "mlp.up_proj.weight", _OURS + "mlp/up_DF", 1),
    Row(_LAYER + "mlp.down_proj.weight", _OURS + "mlp/down_FD", 1),
    Row(_LAYER + "mlp.gate_proj.bias", _OURS + "mlp/gate_bias_F"),
    Row(_LAYER + "mlp.up_proj.bias", _OURS + "mlp/up_bias_F"),
    Row(_LAYER + "mlp.down_proj.bias", _OURS + "mlp/down_bias_D"),
    Row("model.embed_tokens.weight", "embedding_VD"),
    Row("model.norm.weight", "final_norm/scale_D"),
    Row("lm_head.weight", "head_VD"),
    Row(_LAYER + "input_layernorm.weight", _OURS + "attention_norm/scale_D"),
)
LLAMA_ROWS = (*_PROJECTIONS, Row(_LAYER + "post_attention_layernorm.weight", _OURS + "mlp_norm/scale_D"))
GEMMA_2_ROWS = (
    *_PROJECTIONS,
    Row(_LAYER + "post_attention_layernorm.weight", _OURS + "attention_post_norm/scale_D"),
    Row(_LAYER + "pre_feedforward_layernorm.weight", _OURS + "mlp_norm/scale_D"),
    Row(_LAYER + "post_feedforward_layernorm.weight", _OURS + "mlp_post_norm/scale_D"),
)
_BLOCK = "transformer.h.{layer}."
GPT2_ROWS = (
    Row("transformer.wte.weight", "embedding_VD"),
    Row("transformer.wpe.weight", "position_TD"),
    Row(_BLOCK + "ln_1.weight", _OURS + "attention_norm/scale_D"),
    Row(_BLOCK + "ln_1.bias", _OURS + "attention_norm/bias_D"),
    Row(_BLOCK + "attn.c_attn.weight", _OURS + "attention/q_DNH", 1, False, 0, 3),
    Row(_BLOCK + "attn.c_attn.weight", _OURS + "attention/k_DKH", 1, False, 1, 3),
    Row(_BLOCK + "attn.c_attn.weight", _OURS + "attention/v_DKH", 1, False, 2, 3),
    Row(_BLOCK + "attn.c_attn.bias", _OURS + "attention/q_bias_NH", 0, False, 0, 3),
    Row(_BLOCK + "attn.c_attn.bias", _OURS + "attention/k_bias_KH", 0, False, 1, 3),
    Row(_BLOCK + "attn.c_attn.bias", _OURS + "attention/v_bias_KH", 0, False, 2, 3),
    Row(_BLOCK + "attn.c_proj.weight", _OURS + "attention/o_NHD", 2, False),
    Row(_BLOCK + "attn.c_proj.bias", _OURS + "attention/o_bias_D"),
    Row(_BLOCK + "ln_2.weight", _OURS + "mlp_norm/scale_D"),
    Row(_BLOCK + "ln_2.bias", _OURS + "mlp_norm/bias_D"),
    Row(_BLOCK + "mlp.c_fc.weight", _OURS + "mlp/up_DF", 1, False),
    Row(_BLOCK + "mlp.c_fc.bias", _OURS + "mlp/up_bias_F"),
    Row(_BLOCK + "mlp.c_proj.weight", _OURS + "mlp/down_FD", 1, False),
    Row(_BLOCK + "mlp.c_proj.bias", _OURS + "mlp/down_bias_D"),
    Row("transformer.ln_f.weight", "final_norm/scale_D"),
    Row("transformer.ln_f.bias", "final_norm/bias_D"),
    Row("lm_head.weight", "head_VD"),
)


@dataclass(frozen=True)
class Family:
    """One `model_type`.

    Attributes:
      architecture: the class in `transformers` that holds it.
      entries, rows: its options and its weights.
      renames: (pattern, replacement): older or larger checkpoints' names of the same keys.
      ignored: pattern of keys that are no part of the text model, or follow from config.json.
      section: the part of config.json that describes the text model; "" is all of it.
    """

    architecture: str
    entries: tuple[Entry, ...]
    rows: tuple[Row, ...]
    renames: tuple[tuple[str, str], ...] = ()
    ignored: str = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
    section: str = ""


_GEMMA_3 = Family(
    "Gemma3ForCausalLM",
    _entries(
        *_GEMMA_2,
        Always({"qk_norm": True}),
        LocalLayers(every=6),
        Rope(1000000.0, local=10000.0),
        *_softcaps(None, None),
        max_length=131072,
        tied=True,
        vocab_size=262208,
        num_heads=8,
        num_kv_heads=4,
        head_dim=256,
    ),
    GEMMA_2_ROWS,
    renames=(
        (r"^(model\.language_model|language_model\.model)\.", "model."),
        (r"^language_model\.lm_head\.", "lm_head."),
    ),
    ignored=r"(model\.)?(vision_tower|multi_modal_projector)\..*",
)

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        _entries(
            _activation("hidden_act", "silu"),
            *_ATTENTION_BIAS,
            Key("mlp_bias", "mlp_bias", False),
            Rope(),
            max_length=2048,
            tied=False,
        ),
        LLAMA_ROWS,
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        _entries(
            _activation("hidden_act", "silu"),
            Always({"qkv_bias": True}),
            Only("use_sliding_window", False),
            Rope(),
            max_length=32768,
            tied=False,
        ),
        LLAMA_ROWS,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _entries(
            _activation("hidden_act", "silu"),
            Always({"qk_norm": True}),
            *_ATTENTION_BIAS,
            Only("use_sliding_window", False),
            Rope(),
            max_length=32768,
            tied=False,
            head_dim=128,
        ),
        LLAMA_ROWS,
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        _entries(
            *_GEMMA,
            # The first releases say "gelu" and mean its tanh approximation.
            _activation("hidden_act", "gelu_pytorch_tanh", gelu="gelu_tanh"),
            Rope(),
            max_length=8192,
            tied=True,
            head_dim=256,
        ),
        LLAMA_ROWS,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        _entries(
            *_GEMMA_2, LocalLayers(every=2), Rope(), *_softcaps(50.0, 30.0), max_length=8192, tied=True, head_dim=256
        ),
        GEMMA_2_ROWS,
    ),
    "gemma3_text": _GEMMA_3,
    "gemma3": dataclasses.replace(_GEMMA_3, section="text_config"),  # with a vision tower, which we leave alone
    "gpt2": Family(
        "GPT2LMHeadModel",
        (
            Key("vocab_size", "vocab_size"),
            Key("n_layer", "num_layers"),
            Key("n_embd", "width"),
            Key("n_head", "num_heads"),
            Key("n_inner", "hidden", lambda fields: 4 * fields["width"]),
            Key("n_positions", "max_length", 1024),
            Key("layer_norm_epsilon", "norm_eps", 1e-5),
            Key("tie_word_embeddings", "tie_embeddings", True),
            _activation("activation_function", "gelu_new"),
            Always({"num_kv_heads": lambda fields: fields["num_heads"], "head_dim": _width_per_head}),
            Always({"norm": "layer", "gated": False, "learned_positions": True}),
            Always({"qkv_bias": True, "output_bias": True, "mlp_bias": True}),
            Only("scale_attn_weights", True),
            Only("scale_attn_by_inverse_layer_idx", False),
            Only("add_cross_attention", False),
            Only("quantization_config", None),
        ),
        GPT2_ROWS,
        renames=((r"^(?=(wte|wpe|h|ln_f)\.)", "transformer."),),
        ignored=r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",
    ),
}


def family_of(values: Values, file: object) -> Family:
    """The family of a `config.json` with content `values`; `file` is for the error message."""
    name = values.get("model_type")
    if name not in FAMILIES:
        raise CheckpointError(f"{file}: model_type is {name!r}; supported: {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def read_config(values: Values, file: object) -> LanguageModelConfig:
    """The model a `config.json` describes; an option we do not compute is an error, never ignored.

    Raises:
      CheckpointError: naming `file`, the option, its value and what is supported.
    """
    family = family_of(values, file)
    if family.section:
        values = values.get(family.section) or {}
    fields: dict[str, Any] = {}
    for entry in family.entries:
        try:
            fields.update(entry.read(values, fields))
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from None
    return LanguageModelConfig(**fields)


def write_config(config: LanguageModelConfig) -> tuple[Family, dict[str, Any]]:
    """The family that computes `config`, and its `config.json`: the first that reads back as this very config.

    Raises:
      CheckpointError: no family does; the message names what the nearest one would have otherwise.
    """
    runtime = {name: getattr(config, name) for name in RUNTIME}
    differences = {}
    for name, family in FAMILIES.items():
        values = {"architectures": [family.architecture], "model_type": name}
        for entry in family.entries:
            values.update(entry.write(config))
        try:
            found = dataclasses.replace(read_config(values, name), **runtime)
        except CheckpointError as error:
            differences[name] = [str(error)]
            continue
        if found == config:
            return family, values
        differences[name] = [
            f"{field} = {getattr(found, field)!r} instead of {getattr(config, field)!r}"
            for field in _FIELD_TYPES
            if getattr(found, field) != getattr(config, field)
        ]
    nearest = min(differences, key=lambda name: len(differences[name]))
    raise CheckpointError(
        "no model of transformers computes what this config does, so it cannot be written in their layout. "
        f"The nearest, {nearest}, has {'; '.join(differences[nearest])}."
    )

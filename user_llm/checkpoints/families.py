"""The families of open language models: one table each, from `config.json` and weight keys to ours and back.

A family is what `config.json` calls `model_type`. Its entries pair options with `LanguageModelConfig` fields, its rows
pair weight keys with parameter paths; what no entry reads is either of no effect on what a model computes (dropout,
initialisation) or refused by an `Only`.
"""

import dataclasses
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from user_llm.checkpoints.options import (
    FIELD_TYPES,
    REQUIRED,
    Always,
    Entry,
    GlobalLayers,
    Key,
    LocalLayers,
    Only,
    Rope,
    Values,
    activation,
    section,
    width_per_head,
)
from user_llm.checkpoints.tensors import CheckpointError, Row
from user_llm.errors import UserError
from user_llm.models.language_model import LanguageModelConfig

# How a model is run, which no config.json says.
RUNTIME = ("scan_layers", "remat", "dtype", "param_dtype", "lora")
MOST_LAYERS = 1000  # each is built before its weights are looked for; no model has a fifth of them


def _entries(*special: Entry, max_length: int, tied: bool, **defaults: Any) -> tuple[Entry, ...]:
    """What all families but GPT-2 call by the same names; `defaults` are those that differ from Llama's."""
    return (
        Key("vocab_size", "vocab_size", defaults.get("vocab_size", REQUIRED)),
        Key("num_hidden_layers", "num_layers", most=MOST_LAYERS),
        Key("hidden_size", "width"),
        Key("num_attention_heads", "num_heads", defaults.get("num_heads", REQUIRED)),
        Key("num_key_value_heads", "num_kv_heads", defaults.get("num_kv_heads", lambda fields: fields["num_heads"])),
        Key("head_dim", "head_dim", defaults.get("head_dim", width_per_head)),
        Key("intermediate_size", "hidden"),
        Key("rms_norm_eps", "norm_eps", 1e-6),
        Key("tie_word_embeddings", "tie_embeddings", tied),
        Key("max_position_embeddings", "max_length", max_length),
        Only("quantization_config", None),
        Only("partial_rotary_factor", 1.0),
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
    activation("hidden_activation", "gelu_pytorch_tanh"),
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
            activation("hidden_act", "silu"),
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
            activation("hidden_act", "silu"),
            Always({"qkv_bias": True}),
            Only("use_sliding_window", False),
            GlobalLayers(),
            Rope(),
            max_length=32768,
            tied=False,
        ),
        LLAMA_ROWS,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _entries(
            activation("hidden_act", "silu"),
            Always({"qk_norm": True}),
            *_ATTENTION_BIAS,
            Only("use_sliding_window", False),
            GlobalLayers(),
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
            activation("hidden_act", "gelu_pytorch_tanh", gelu="gelu_tanh"),
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
            Key("n_layer", "num_layers", most=MOST_LAYERS),
            Key("n_embd", "width"),
            Key("n_head", "num_heads"),
            Key("n_inner", "hidden", lambda fields: 4 * fields["width"]),
            Key("n_positions", "max_length", 1024),
            Key("layer_norm_epsilon", "norm_eps", 1e-5),
            Key("tie_word_embeddings", "tie_embeddings", True),
            activation("activation_function", "gelu_new"),
            Always({"num_kv_heads": lambda fields: fields["num_heads"], "head_dim": width_per_head}),
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
    if not isinstance(name, str) or name not in FAMILIES:
        raise CheckpointError(f"{file}: model_type is {reprlib.repr(name)}; supported: {', '.join(FAMILIES)}.")
    family, named = FAMILIES[name], values.get("architectures")
    for other in FAMILIES.values():
        # The tensors of several families have the same names: Llama's weights would load as Gemma's.
        if other.architecture != family.architecture and isinstance(named, list) and other.architecture in named:
            raise CheckpointError(
                f"{file}: model_type is {name!r}, but architectures names {other.architecture}: put the one right that "
                "is wrong."
            )
    return family


def read_config(values: Values, file: object) -> LanguageModelConfig:
    """The model a `config.json` describes; an option we do not compute is an error, never ignored.

    Raises:
      CheckpointError: naming `file`, the option, its value and what is supported.
    """
    family = family_of(values, file)
    fields: dict[str, Any] = {}
    try:
        if family.section:
            values = section(values, family.section)
        for entry in family.entries:
            fields.update(entry.read(values, fields))
        config = LanguageModelConfig(**fields)
        _check_heads(config)
    except UserError as error:
        raise CheckpointError(f"{file}: {error}") from None
    return config


def _check_heads(config: LanguageModelConfig) -> None:
    if config.num_heads % config.num_kv_heads:
        raise CheckpointError(f"{config.num_heads} attention heads do not divide among {config.num_kv_heads} of keys.")
    if config.head_dim % 2 and not config.learned_positions:
        raise CheckpointError(f"heads are {config.head_dim} wide; expected an even number, as positions turn pairs.")


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
            for field in FIELD_TYPES
            if getattr(found, field) != getattr(config, field)
        ]
    nearest = min(differences, key=lambda name: len(differences[name]))
    raise CheckpointError(
        "no model of transformers computes what this config does, so it cannot be written in their layout. "
        f"The nearest, {nearest}, has {'; '.join(differences[nearest])}."
    )

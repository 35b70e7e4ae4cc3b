"""What a GGUF file's metadata say of its model, as the options of a `config.json`.

A table for each architecture; a key of its that no table reads is an error, never ignored. What is not written (as
Gemma's scale of attention) is what llama.cpp computes.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from user_llm.checkpoints.gguf import names
from user_llm.checkpoints.gguf.rope_factors import ROPE_FACTORS, rope_scaling
from user_llm.checkpoints.tensors import CheckpointError
from user_llm.gguf_header import Header


@dataclass(frozen=True)
class Architecture:
    """One `general.architecture`.

    Attributes:
      model_type: of config.json.
      names: of its tensors.
      required, optional: metadata key (without the architecture's name) → option.
      biases: option → the tensor whose presence says so.
      largest: layers of the one model whose attention is scaled by width / heads; None: no such scale is written.
    """

    model_type: str
    names: names.Names
    required: Mapping[str, str]
    optional: Mapping[str, str]
    biases: Mapping[str, str]
    largest: int | None = None


_REQUIRED = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_OPTIONAL = {
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_GEMMA_2 = {
    **_OPTIONAL,
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.sliding_window_pattern": "sliding_window_pattern",
}
_ATTENTION = {"attention_bias": "blk.0.attn_q.bias"}

ARCHITECTURES = {
    "llama": Architecture("llama", names.LLAMA, _REQUIRED, _OPTIONAL, {**_ATTENTION, "mlp_bias": "blk.0.ffn_up.bias"}),
    "qwen2": Architecture("qwen2", names.PLAIN, _REQUIRED, _OPTIONAL, {}),
    "qwen3": Architecture("qwen3", names.PLAIN, _REQUIRED, _OPTIONAL, _ATTENTION),
    "gemma": Architecture("gemma", names.GEMMA, _REQUIRED, _OPTIONAL, _ATTENTION),
    "gemma2": Architecture("gemma2", names.GEMMA_2, _REQUIRED | _WINDOW, _GEMMA_2, _ATTENTION, largest=46),
    "gemma3": Architecture(
        "gemma3_text",
        names.GEMMA_2,
        _REQUIRED | _WINDOW,
        _GEMMA_2 | {"rope.freq_base_swa": "rope_local_base_freq"},
        _ATTENTION,
        largest=62,
    ),
    "gpt2": Architecture(
        "gpt2",
        names.GPT2,
        {
            "block_count": "n_layer",
            "embedding_length": "n_embd",
            "feed_forward_length": "n_inner",
            "context_length": "n_positions",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        {},
        {},
    ),
}

# Of no effect on what is computed, or told by the tensors.
_IDLE = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.original_context_length")
# Key → the one value of it that we compute.
_ONLY = {"expert_count": 0, "expert_used_count": 0, "attention.causal": True}


def architecture_of(header: Header) -> Architecture:
    """Raises `CheckpointError` where it is none of ours."""
    name = header.values.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CheckpointError(
            f"{header.file}: general.architecture is {reprlib.repr(name)}; supported: {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[name]


def read_options(header: Header) -> dict[str, Any]:
    """The file's `config.json`.

    Raises:
      CheckpointError: naming the key that is missing or not supported.
    """
    architecture = architecture_of(header)
    prefix = f"{header.values['general.architecture']}."
    own = {key.removeprefix(prefix): value for key, value in header.values.items() if key.startswith(prefix)}
    if missing := [key for key in architecture.required if key not in own]:
        raise CheckpointError(f"{header.file} has no {' and no '.join(prefix + key for key in missing)}.")
    if (embedding := header.tensors.get("token_embd.weight")) is None:
        raise CheckpointError(f"{header.file} has no tensor token_embd.weight: expected a language model.")
    known = {**architecture.required, **architecture.optional}
    options: dict[str, Any] = {known[key]: own.pop(key) for key in known if key in own}
    options |= {
        "model_type": architecture.model_type,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        **{option: tensor in header.tensors for option, tensor in architecture.biases.items()},
    }
    if architecture.optional:
        _complete(options, own, header, architecture)
    for key, value in own.items():
        if key not in _IDLE and (key not in _ONLY or value != _ONLY[key]):
            raise CheckpointError(
                f"{header.file}: {prefix}{key} is {reprlib.repr(value)}; "
                + (f"only {_ONLY[key]} is supported." if key in _ONLY else "this key is not supported.")
            )
    return options


def _complete(options: dict[str, Any], own: dict[str, Any], header: Header, architecture: Architecture) -> None:
    """Adds what the metadata leave to be known, or say in another way; takes what it has read out of `own`."""
    options.setdefault("rope_theta", 10000.0)
    width, heads = options["hidden_size"], options["num_attention_heads"]
    options.setdefault("num_key_value_heads", heads)
    per_head = width // heads if type(width) is type(heads) is int and heads > 0 else 0
    head_dim = options.setdefault("head_dim", per_head)
    if type(head_dim) is not int:
        raise CheckpointError(
            f"{header.file}: attention.key_length is {reprlib.repr(head_dim)}; expected a whole number."
        )
    for key in ("attention.value_length", "rope.dimension_count"):
        if (found := own.pop(key, head_dim)) != head_dim:
            raise CheckpointError(
                f"{header.file}: {key} is {reprlib.repr(found)}; only the {head_dim} of a head of keys is supported."
            )
    kind, factor = own.pop("rope.scaling.type", "linear"), own.pop("rope.scaling.factor", 1.0)
    if kind != "none" and (kind != "linear" or factor not in (0.0, 1.0)):
        options["rope_scaling"] = {"rope_type": kind, "factor": factor}
    if ROPE_FACTORS in header.tensors:
        options["rope_scaling"] = rope_scaling(header, options["rope_theta"], head_dim)
    if isinstance(pattern := options.get("sliding_window_pattern"), list):
        del options["sliding_window_pattern"]
        options["layer_types"] = ["sliding_attention" if local else "full_attention" for local in pattern]
    if architecture.largest is not None:
        is_largest = options["num_hidden_layers"] == architecture.largest
        options["query_pre_attn_scalar"] = per_head if is_largest else head_dim

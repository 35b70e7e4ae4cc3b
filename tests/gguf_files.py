"""GGUF files as llama.cpp's converter makes them, for tests: written by the `gguf` library, with its names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize

ARCHITECTURES = {"gemma3_text": "gemma3"}  # where the name is another than of `model_type`

TINY_LLAMA = {
    "llama.block_count": 1,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 12,
    "llama.context_length": 32,
    "llama.attention.head_count": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def write_gguf(
    file: Path,
    architecture: str,
    values: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    kinds: Mapping[str, str] | None = None,
) -> Path:
    """Writes `tensors` with the metadata `values`; `kinds` names the type of those that are not float32."""
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in values.items():
        {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}.get(
            type(value), writer.add_array
        )(key, value)
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[(kinds or {}).get(name, "F32")]
        writer.add_tensor(name, quantize(np.ascontiguousarray(tensor, np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def converted(model: Any) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    """Architecture, metadata and tensors, as llama.cpp converts a model of `transformers`."""
    config = model.config
    architecture = ARCHITECTURES.get(config.model_type, config.model_type)
    layers = config.num_hidden_layers
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], layers)
    tied = config.tie_word_embeddings
    tensors = {}
    for key, tensor in model.state_dict().items():
        if not (tied and key == "lm_head.weight"):
            name = names.get_name(key, try_suffixes=(".weight", ".bias"))
            tensors[name] = _converted(architecture, key, tensor.detach().numpy(), config)
    return architecture, {f"{architecture}.{key}": value for key, value in _metadata(architecture, config)}, tensors


def _converted(architecture: str, key: str, tensor: np.ndarray, config: Any) -> np.ndarray:
    leaf = key.split(".")[-2]
    if architecture.startswith("gemma") and key.endswith("norm.weight"):
        return tensor + 1
    if architecture == "gpt2" and leaf in ("c_attn", "c_proj", "c_fc"):
        return tensor.T
    if architecture == "llama" and leaf in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if leaf == "q_proj" else config.num_key_value_heads
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)
    return tensor


def _metadata(architecture: str, config: Any):
    yield "block_count", config.num_hidden_layers
    yield "embedding_length", config.hidden_size
    yield "context_length", config.max_position_embeddings
    yield "attention.head_count", config.num_attention_heads
    if architecture == "gpt2":
        yield "feed_forward_length", 4 * config.hidden_size
        yield "attention.layer_norm_epsilon", config.layer_norm_epsilon
        return
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    yield "feed_forward_length", config.intermediate_size
    yield "attention.head_count_kv", config.num_key_value_heads
    yield "attention.key_length", head_dim
    yield "attention.value_length", head_dim
    yield "attention.layer_norm_rms_epsilon", config.rms_norm_eps
    rope = config.rope_parameters
    rope, local = rope.get("full_attention", rope), rope.get("sliding_attention")
    yield "rope.freq_base", rope["rope_theta"]
    if rope["rope_type"] == "linear":
        yield "rope.scaling.type", "linear"
        yield "rope.scaling.factor", rope["factor"]
    if local is not None:
        yield "rope.freq_base_swa", local["rope_theta"]
    if architecture == "llama":
        yield "rope.dimension_count", head_dim
        yield "vocab_size", config.vocab_size
    if architecture in ("gemma2", "gemma3"):
        yield "attention.sliding_window", config.sliding_window
    if architecture == "gemma2":
        yield "attn_logit_softcapping", config.attn_logit_softcapping
        yield "final_logit_softcapping", config.final_logit_softcapping

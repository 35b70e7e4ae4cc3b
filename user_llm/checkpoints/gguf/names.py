"""A GGUF file's tensors by the keys of a Hugging Face checkpoint, and how llama.cpp's converter has changed them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

_TENSOR = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<leaf>\w+)\.(?P<end>weight|bias)")


class Place(NamedTuple):
    """Where a tensor belongs.

    Attributes:
      key: of a Hugging Face checkpoint.
      heads: the option of config.json with the number of heads whose rows have been interleaved; "" is none.
      less: what has been added to all numbers.
      transposed: whether it lies the other way round.
    """

    key: str
    heads: str = ""
    less: float = 0.0
    transposed: bool = False


@dataclass(frozen=True)
class Names:
    """What an architecture's tensors are called.

    Attributes:
      top, layer: leaf → key, both without ".weight" and ".bias".
      prefix: of a layer's keys.
      interleaved: leaf → option with its number of heads. Llama's rotary positions turn neighbours in GGUF, halves of
        a head in `transformers`.
      norms_plus_one: Gemma's norms have 1 added, which `transformers` adds as it computes.
      transposed: leaves that are `[inputs, outputs]` in `transformers`: GPT-2's Conv1D.
    """

    top: Mapping[str, str]
    layer: Mapping[str, str]
    prefix: str = "model.layers."
    interleaved: Mapping[str, str] | None = None
    norms_plus_one: bool = False
    transposed: tuple[str, ...] = ()

    def place(self, name: str) -> Place:
        """A name that is none of these is its own key, and found left over."""
        found = _TENSOR.fullmatch(name)
        leaf = found["leaf"] if found else ""
        layer = found["layer"] if found else None
        names = self.top if layer is None else self.layer
        if found is None or leaf not in names:
            return Place(name)
        prefix = "" if layer is None else f"{self.prefix}{int(layer)}."
        return Place(
            f"{prefix}{names[leaf]}.{found['end']}",
            heads=(self.interleaved or {}).get(leaf, ""),
            less=1.0 if self.norms_plus_one and leaf.endswith("norm") else 0.0,
            transposed=leaf in self.transposed and found["end"] == "weight",
        )


_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEADS = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}

PLAIN = Names(_TOP, _LAYER)
LLAMA = Names(_TOP, _LAYER, interleaved=_HEADS)
GEMMA = Names(_TOP, _LAYER, norms_plus_one=True)
GEMMA_2 = Names(
    _TOP,
    {
        **_LAYER,
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    norms_plus_one=True,
)
GPT2 = Names(
    {
        "token_embd": "transformer.wte",
        "position_embd": "transformer.wpe",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
    },
    {
        "attn_norm": "ln_1",
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_norm": "ln_2",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    },
    prefix="transformer.h.",
    transposed=("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
)

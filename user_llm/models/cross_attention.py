"""Gated cross-attention from language model to user embeddings (paper 3.2; Flamingo, Alayrac et al. 2022)."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from user_llm.models.attention import Attention
from user_llm.models.layers import MLP, RMSNorm, parameter
from user_llm.models.stack import StackConfig, repeat


class Context(NamedTuple):
    """What the language model attends to, projected once a user, so that decoding never projects it again."""

    key: jax.Array  # [G, B, L, K, H]
    value: jax.Array  # [G, B, L, K, H]
    mask: jax.Array  # bool [B, L]


@dataclass(frozen=True)
class ConnectorConfig:
    """Cross-attention before every `every`-th layer of the language model; heads and MLP of each block."""

    every: int
    num_heads: int
    head_dim: int
    hidden: int


class GatedCrossAttention(nnx.Module):
    """x + tanh(gate)·attention(norm(x), context), then x + tanh(gate)·mlp(norm(x)); gates start at zero.

    Flamingo's gate is one number a sublayer. Here it is one a channel: a single one has to agree with a whole
    random projection before it opens, and on simulated users it had not after 500 steps (gates of 0.001, no use
    of the context), where a gate a channel takes 200.
    """

    def __init__(self, config: ConnectorConfig, language_model: StackConfig, context_width: int, *, rngs: nnx.Rngs):
        width, dtype, param_dtype = language_model.width, language_model.dtype, language_model.param_dtype
        norm = dict(epsilon=language_model.norm_eps, param_dtype=param_dtype, rngs=rngs)
        common = dict(output_scale=1.0, width_axis="embed", dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.attention_norm = RMSNorm(width, **norm)
        self.attention = Attention(
            width,
            num_heads=config.num_heads,
            num_kv_heads=config.num_heads,
            head_dim=config.head_dim,
            key_width=context_width,
            key_axis="user",
            **common,
        )
        self.mlp_norm = RMSNorm(width, **norm)
        self.mlp = MLP(
            width,
            config.hidden,
            activation=language_model.activation,
            gated=language_model.gated,
            hidden_axis="mlp",
            **common,
        )
        gate = (jax.nn.initializers.zeros, (width,), ("norm",), param_dtype)
        self.attention_gate_D = parameter(rngs, *gate)
        self.mlp_gate_D = parameter(rngs, *gate)

    def __call__(self, x: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, T, D] attends to projected context [B, L, K, H] under bool `mask` [B, L]."""
        attended = self.attention(self.attention_norm(x), key, value, mask[:, None])
        # A user without any event has nothing to attend to, and would otherwise get the mean of the padding.
        attended = jnp.where(jnp.any(mask, axis=-1)[:, None, None], attended, 0)
        x = x + jnp.tanh(self.attention_gate_D[...]).astype(x.dtype) * attended
        return x + jnp.tanh(self.mlp_gate_D[...]).astype(x.dtype) * self.mlp(self.mlp_norm(x))


class Connector(nnx.Module):
    """The cross-attention blocks: block g comes before layer g · every of a language model.

    Layers that are scanned need blocks that are scanned, so the language model's stack decides on both.
    """

    def __init__(self, config: ConnectorConfig, language_model: StackConfig, context_width: int, *, rngs: nnx.Rngs):
        if not 1 <= config.every <= language_model.num_layers:
            raise ValueError(
                f"Cross-attention every {config.every} layers does not fit a language model of "
                f"{language_model.num_layers} layers: choose `every` from 1 to {language_model.num_layers}."
            )
        self.every = config.every
        self.num_blocks = language_model.num_layers // config.every
        self.dtype = language_model.dtype
        self.scanned = language_model.scan_layers
        self.blocks = repeat(
            lambda rngs: GatedCrossAttention(config, language_model, context_width, rngs=rngs),
            self.num_blocks,
            scan=self.scanned,
            rngs=rngs,
        )

    def context(self, embeddings: jax.Array, mask: jax.Array) -> Context:
        """Projects user embeddings [B, L, U] under bool `mask` [B, L] to every block's keys and values."""
        embeddings = embeddings.astype(self.dtype)
        if self.scanned:
            key, value = jax.vmap(lambda block: block.attention.keys_values(embeddings))(self.blocks)
        else:
            projected = [block.attention.keys_values(embeddings) for block in self.blocks]
            key, value = (jnp.stack(parts) for parts in zip(*projected, strict=True))
        return Context(key, value, mask)

"""Decoder-only language model of the Llama architecture (Touvron et al. 2023)."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from user_llm.models.attention import Cache
from user_llm.models.layers import RMSNorm, lookup, normal, parameter
from user_llm.models.stack import StackConfig, apply_layers, init_layers


@dataclass(frozen=True)
class LanguageModelConfig:
    """Shape and numerics of a Llama. `max_length` is the longest sequence it was trained for, in tokens."""

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    max_length: int = 2048
    scan_layers: bool = False
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    @property
    def stack(self) -> StackConfig:
        return StackConfig(
            num_layers=self.num_layers,
            width=self.width,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            hidden=self.hidden,
            activation="silu",
            gated=True,
            norm_eps=self.norm_eps,
            rope_theta=self.rope_theta,
            dropout=0.0,
            scan_layers=self.scan_layers,
            remat=self.remat,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            width_axis="embed",
            hidden_axis="mlp",
        )


def causal_mask(valid: jax.Array) -> jax.Array:
    """bool [B, T, T]: query t sees key s when s ≤ t and token s is `valid` (bool [B, T])."""
    length = valid.shape[-1]
    return jnp.tril(jnp.ones((length, length), bool)) & valid[:, None, :]


class LanguageModel(nnx.Module):
    """Tokens in, hidden states out; logits are a separate step, since few callers need all of them."""

    def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        table = (normal(1.0 / math.sqrt(config.width)), (config.vocab_size, config.width), ("vocab", "embed"))
        self.embedding_VD = parameter(rngs, *table, config.param_dtype)
        self.layers = init_layers(config.stack, rngs=rngs)
        self.final_norm = RMSNorm(config.width, epsilon=config.norm_eps, param_dtype=config.param_dtype, rngs=rngs)
        if not config.tie_embeddings:
            self.head_VD = parameter(rngs, *table, config.param_dtype)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        *,
        cache: Cache | None = None,
        offset: int | jax.Array = 0,
        cross: nnx.Module | None = None,
        context: Any = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Hidden states [B, T, D] (after the final norm) and the updated cache.

        Args:
          tokens: int [B, T]; positions: int [B, T], counted in tokens from 0.
          mask: bool [B, T, S], the key slots each query sees; S = T without a cache, else the cache's length.
            It alone decides who sees whom: beams may share the T axis, all at one position, each seeing its
            own ancestors.
          cache: from `init_cache`; the T new keys and values go to slots offset … offset + T - 1 (offset may
            be traced) before any query looks.
          cross, context: the connector's blocks and their users; None is the language model alone.
        """
        x = lookup(self.embedding_VD, tokens, self.config.dtype)
        x, cache = apply_layers(
            self.layers,
            self.config.stack,
            x,
            positions,
            mask,
            cache=cache,
            offset=offset,
            cross=cross,
            context=context,
        )
        return self.final_norm(x), cache

    def output_table(self) -> jax.Array:
        """[V, D]: logits are hidden states times its transpose."""
        return (self.embedding_VD if self.config.tie_embeddings else self.head_VD)[...]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 [..., V] of hidden states [..., D]."""
        table = self.output_table().astype(self.config.dtype)
        return jnp.einsum("...D,VD->...V", hidden, table, preferred_element_type=jnp.float32)

    def init_cache(self, batch: int, length: int, context: Any = None) -> Cache:
        """Empty keys and values of `length` slots for `batch` rows; a `context` of cross-attention takes none."""
        config = self.config
        shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
        return {name: jnp.zeros(shape, config.dtype) for name in ("key", "value")}

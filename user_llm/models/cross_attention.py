"""Gated cross-attention from language model to user embeddings (paper 3.2; Flamingo, Alayrac et al. 2022)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from user_llm.errors import UserError
from user_llm.models.attention import Attention, Cache, Context
from user_llm.models.language_model import LanguageModel, LanguageModelConfig
from user_llm.models.layers import MLP, NormOptions, RMSNorm, SublayerOptions, parameter
from user_llm.models.sharding import shard
from user_llm.models.stack import StackConfig, repeat


@dataclasses.dataclass(frozen=True)
class CrossAttentionConfig:
    """Cross-attention before every `every`-th layer of the language model from `first_layer` on; heads and MLP of each
    block."""

    every: int
    num_heads: int
    head_dim: int
    hidden: int
    first_layer: int = 0


class CrossBlock(nnx.Module):
    """Pre-norm layer of vectors that attend to a context: x + attention(norm(x), context), then x + mlp(norm(x)).

    Args:
      config: of the stack the block belongs to; what is about its self-attention (rotary positions) is not used.
      context_width: U, of the vectors that keys and values are made of.
      output_scale: of what each of the two sublayers adds to unit-variance vectors.
    """

    def __init__(self, config: StackConfig, context_width: int, *, output_scale: float, rngs: nnx.Rngs):
        norm = NormOptions(epsilon=config.norm_eps, param_dtype=config.param_dtype, rngs=rngs)
        common = SublayerOptions(
            output_scale=output_scale,
            width_axis=config.width_axis,
            dtype=config.dtype,
            param_dtype=config.param_dtype,
            rngs=rngs,
        )
        self.attention_norm = RMSNorm(config.width, **norm)
        self.attention = Attention(
            config.width,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            key_width=context_width,
            key_axis="user",
            **common,
        )
        self.mlp_norm = RMSNorm(config.width, **norm)
        self.mlp = MLP(
            config.width,
            config.hidden,
            activation=config.activation,
            gated=config.gated,
            hidden_axis=config.hidden_axis,
            **common,
        )

    def attend(self, x: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
        """What [B, T, D] get from a projected context [B, L, K, H] under bool `mask` [B, L]."""
        attended = self.attention(self.attention_norm(x), key, value, mask[:, None])
        # A user without any event has nothing to attend to, and would otherwise get the mean of the padding.
        return jnp.where(jnp.any(mask, axis=-1)[:, None, None], attended, 0)

    def __call__(self, x: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, T, D] → [B, T, D]; the context as in `attend`."""
        x = shard(x + self.attend(x, key, value, mask), "batch", ...)
        return shard(x + self.mlp(self.mlp_norm(x)), "batch", ...)


class GatedCrossBlock(CrossBlock):
    """x + tanh(gate)·attention(norm(x), context), then x + tanh(gate)·mlp(norm(x)); gates start at zero.

    Flamingo's gate is one number a sublayer. Here it is one a channel: a single one has to agree with a whole
    random projection before it opens, and on simulated users it had not after 500 steps (gates of 0.001, no use
    of the context), where a gate a channel takes 200.
    """

    def __init__(self, config: StackConfig, context_width: int, *, rngs: nnx.Rngs):
        super().__init__(config, context_width, output_scale=1.0, rngs=rngs)
        gate = (jax.nn.initializers.zeros, (config.width,), ("norm",), config.param_dtype)
        self.attention_gate_D = parameter(rngs, *gate)
        self.mlp_gate_D = parameter(rngs, *gate)

    def __call__(self, x: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, T, D] → [B, T, D], the same bits while the gates are zero."""
        attended = jnp.tanh(self.attention_gate_D[...]).astype(x.dtype) * self.attend(x, key, value, mask)
        x = shard(x + attended, "batch", ...)
        transformed = jnp.tanh(self.mlp_gate_D[...]).astype(x.dtype) * self.mlp(self.mlp_norm(x))
        return shard(x + transformed, "batch", ...)


class CrossAttention(nnx.Module):
    """The connector that adds cross-attention blocks, g before layer first_layer + g · every of a language model.

    Layers that are scanned need blocks that are scanned, so the language model's stack decides on both.

    Args:
      language_model: of the model the blocks are put into.
      context_width: U, of the user embeddings.

    Raises:
      UserError: `first_layer` is no layer of the language model, or `every` more than it has from there on.
    """

    def __init__(
        self, config: CrossAttentionConfig, language_model: LanguageModelConfig, context_width: int, *, rngs: nnx.Rngs
    ):
        layers = language_model.num_layers - config.first_layer
        if not 0 <= config.first_layer < language_model.num_layers:
            raise UserError(
                f"Cross-attention from layer {config.first_layer} on does not fit a language model of "
                f"{language_model.num_layers} layers: choose `first_layer` from 0 to {language_model.num_layers - 1}."
            )
        if not 1 <= config.every <= layers:
            from_there = f" from layer {config.first_layer} on" if config.first_layer else ""
            raise UserError(
                f"Cross-attention every {config.every} layers does not fit a language model of {layers} "
                f"layers{from_there}: choose `every` from 1 to {layers}."
            )
        self.first_layer = config.first_layer
        self.every = config.every
        self.num_blocks = layers // config.every
        self.dtype = language_model.dtype
        block = dataclasses.replace(
            language_model.stack,
            num_heads=config.num_heads,
            num_kv_heads=config.num_heads,
            head_dim=config.head_dim,
            hidden=config.hidden,
        )
        self.blocks = repeat(
            lambda rngs: GatedCrossBlock(block, context_width, rngs=rngs),
            self.num_blocks,
            scan=language_model.scan_layers,
            rngs=rngs,
        )

    def context(self, embeddings: jax.Array, mask: jax.Array) -> Context:
        """Projects user embeddings [B, L, U] under bool `mask` [B, L] to every block's keys and values."""
        embeddings = embeddings.astype(self.dtype)
        if isinstance(self.blocks, nnx.List):
            projected = [block.attention.keys_values(embeddings) for block in self.blocks]
            key, value = (jnp.stack(parts) for parts in zip(*projected, strict=True))
        else:
            key, value = jax.vmap(lambda block: block.attention.keys_values(embeddings))(self.blocks)
        return Context(key, value, mask)

    def __call__(
        self,
        language_model: LanguageModel,
        tokens: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        *,
        context: Context,
        cache: Cache | None,
        offset: int | jax.Array,
    ) -> tuple[jax.Array, Cache | None]:
        """As `LanguageModel.__call__`, its layers attending to `context` in between."""
        return language_model(tokens, positions, mask, cache=cache, offset=offset, cross=self, context=context)

    def init_cache(self, language_model: LanguageModel, batch: int, length: int, context: Context) -> Cache:
        """The language model's own cache: this context takes no slots of it."""
        del context
        return language_model.init_cache(batch, length)

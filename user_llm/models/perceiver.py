"""Perceiver: a user's embeddings read into a few latents (paper 3.2.2 and 4.2; Jaegle et al. 2021)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from user_llm.errors import UserError
from user_llm.models.cross_attention import CrossBlock
from user_llm.models.layers import RMSNorm, cast, normal, parameter
from user_llm.models.stack import StackConfig, repeat


@dataclass(frozen=True)
class PerceiverConfig:
    """The paper's by default: 6 cross-attention layers, 16 latents."""

    num_layers: int = 6
    num_latents: int = 16
    num_heads: int = 8
    hidden: int = 512
    scan_layers: bool = False
    remat: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"

    def stack(self, width: int) -> StackConfig:
        """The stack of a Perceiver whose embeddings and latents have `width` (U)."""
        if width % self.num_heads:
            raise UserError(f"Encoder width {width} must be a multiple of the Perceiver's num_heads {self.num_heads}.")
        return StackConfig(
            num_layers=self.num_layers,
            width=width,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            head_dim=width // self.num_heads,
            hidden=self.hidden,
            activation="gelu",
            gated=False,
            norm_eps=1e-6,
            rope_theta=None,
            dropout=0.0,
            scan_layers=self.scan_layers,
            remat=self.remat,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            width_axis="user",
            hidden_axis="user_mlp",
        )


class Perceiver(nnx.Module):
    """Learned latents that attend to user embeddings, layer after layer: [B, S, U] → [B, L, U], whatever S is.

    Embeddings bring their order with them: the encoder has added its positions.

    Args:
      width: U, of the embeddings and of the latents.

    Raises:
      UserError: the width is no multiple of the number of heads.
    """

    def __init__(self, config: PerceiverConfig, width: int, *, rngs: nnx.Rngs):
        self.config = config
        stack = config.stack(width)
        # Unit variance: small latents would look alike once the first layer has added the same mean to all.
        self.latents_LU = parameter(rngs, normal(1.0), (config.num_latents, width), (None, "user"), config.param_dtype)
        self.layers = repeat(
            lambda rngs: CrossBlock(stack, width, output_scale=stack.output_scale, rngs=rngs),
            config.num_layers,
            scan=config.scan_layers,
            rngs=rngs,
        )
        self.final_norm = RMSNorm(width, epsilon=stack.norm_eps, param_dtype=config.param_dtype, rngs=rngs)

    def __call__(self, embeddings: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Latents [B, L, U] and their bool mask [B, L]: all True, or all False (and zero) for a user without events.

        Args:
          embeddings: [B, S, U]; mask: bool [B, S], where there is one.
        """
        config = self.config
        embeddings = embeddings.astype(config.dtype)

        def read(x: jax.Array, layer: CrossBlock) -> tuple[jax.Array, None]:
            return layer(x, *layer.attention.keys_values(embeddings), mask), None

        if config.remat:
            read = jax.checkpoint(read)
        x = jnp.broadcast_to(cast(self.latents_LU, config.dtype), (len(mask), *self.latents_LU.shape))
        if isinstance(self.layers, nnx.List):
            for layer in self.layers:
                x, _ = read(x, layer)
        else:
            x, _ = jax.lax.scan(read, x, self.layers)
        known = jnp.broadcast_to(jnp.any(mask, axis=-1, keepdims=True), x.shape[:2])
        return jnp.where(known[..., None], self.final_norm(x), 0), known

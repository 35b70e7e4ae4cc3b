"""HSTU (Zhai et al. 2024, "Actions speak louder than words"): gated units in place of softmax attention.

A layer is x + W_o(norm(A V) ⊙ U) with U, V, Q, K = silu(W norm(x)) and A = silu(Q Kᵀ + bias) / n over the events
before: without a softmax, how many events are alike still shows. The bias is of the distance of two events, and of the
time between them.
"""

import typing

import jax
import jax.numpy as jnp
from flax import nnx

from user_llm.models.autoregressive_encoder import AutoregressiveEncoder
from user_llm.models.event_times import BUCKETS, bucket, following
from user_llm.models.layers import RMSNorm, cast, dropout, fan_in, normal, parameter, round_to_dtype
from user_llm.models.linear import linear
from user_llm.models.sharding import shard
from user_llm.models.stack import repeat
from user_llm.models.user_encoder import EncoderConfig


class HSTULayer(nnx.Module):
    """One layer; heads are `width / num_heads` wide. `time` of the config: see `EncoderConfig`."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, heads, dtype = config.width, config.num_heads, config.param_dtype
        shape = (width, 4, heads, width // heads)
        axes = ("user", None, "heads", "head_dim")
        self.norm, self.mixed_norm = (
            RMSNorm(width, epsilon=config.stack.norm_eps, param_dtype=dtype, rngs=rngs) for _ in range(2)
        )
        self.uvqk_DPNH = parameter(rngs, fan_in(width), shape, axes, dtype)
        self.o_NHD = parameter(
            rngs, fan_in(width, config.stack.output_scale), (heads, width // heads, width), (*axes[2:], "user"), dtype
        )
        self.distance_S = parameter(rngs, normal(0.02), (config.max_length,), (None,), dtype)
        if config.time:
            self.time_T = parameter(rngs, normal(0.02), (BUCKETS,), (None,), dtype)

    def __call__(
        self, x: jax.Array, sees: jax.Array, distance: jax.Array, spans: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        """[B, S, U] of [B, S, U].

        Args:
          sees: bool [B, S, S], the events each one sees.
          distance: int [S, S], how many slots lie between.
          spans: int [B, S, S], the bucket of the time between; None where it is not read.
          key: of dropout.
        """
        config = self.config
        u, v, q, k = jnp.moveaxis(
            jax.nn.silu(linear(self.norm(x), cast(self.uvqk_DPNH, config.dtype))), 2, 0
        )  # each [B, S, N, H]
        scores = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32)
        bias = self.distance_S[...].astype(jnp.float32)[distance]
        if spans is not None:
            bias = bias + self.time_T[...].astype(jnp.float32)[spans]
        scores = jax.nn.silu(scores + (bias if bias.ndim == 2 else bias[:, None])) / config.max_length
        scores = jnp.where(sees[:, None], scores, 0).astype(x.dtype)
        mixed = jnp.einsum("BNTS,BSNH->BTNH", scores, v)
        mixed = self.mixed_norm(mixed.reshape(x.shape)).reshape(u.shape) * u
        mixed = dropout(mixed, config.dropout, key)
        return round_to_dtype(shard(x + linear(mixed, cast(self.o_NHD, config.dtype), 2), "batch", ...))


class HSTU(AutoregressiveEncoder):
    """A causal stack of gated units over events; what follows an event is read off its embedding."""

    def make_layers(self, rngs: nnx.Rngs) -> nnx.Module:
        """See `HistoryTransformer`."""
        config = self.config
        return repeat(lambda rngs: HSTULayer(config, rngs=rngs), config.num_layers, scan=config.scan_layers, rngs=rngs)

    def run_layers(
        self, x: jax.Array, sees: jax.Array, ago: jax.Array | None, user: jax.Array | None, key: jax.Array | None
    ) -> jax.Array:
        """See `HistoryTransformer`."""
        config, length = self.config, x.shape[1]
        slots, spans = jnp.arange(length), None
        distance = jnp.clip(slots[:, None] - slots, 0, config.max_length - 1)
        if config.time and ago is not None:
            now = following(ago, user) if config.time == "asked" else ago
            spans = bucket(ago[:, None, :] - now[:, :, None])
        keys = None if key is None else jax.random.split(key, config.num_layers)
        if not config.scan_layers:
            for index, layer in enumerate(typing.cast(list[HSTULayer], self.layers)):
                x = layer(x, sees, distance, spans, None if keys is None else keys[index])
            return x

        def step(x, layer_and_key):
            layer, key = layer_and_key
            return layer(x, sees, distance, spans, key), None

        return jax.lax.scan(step, x, (self.layers, keys))[0]

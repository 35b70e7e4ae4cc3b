"""Small parts every model is built of: parameters with named axes, norm, MLP, rotary positions, dropout."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

Initializer = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]

ACTIVATIONS = {"silu": jax.nn.silu, "relu": jax.nn.relu}


class Buffer(nnx.Variable):
    """A constant array a module needs but never trains, such as the categories of each item."""


def parameter(
    rngs: nnx.Rngs, initializer: Initializer, shape: tuple[int, ...], axes: tuple[str | None, ...], dtype: str
) -> nnx.Param:
    """Makes a parameter; `axes` names each dimension for `parallel/rules.py`, without needing a mesh now."""
    if len(shape) != len(axes):
        raise ValueError(f"{len(shape)} dimensions {shape} but {len(axes)} axis names {axes}.")
    return nnx.Param(initializer(rngs.params(), shape, jnp.dtype(dtype)), logical_axes=axes)


def normal(stddev: float) -> Initializer:
    return jax.nn.initializers.normal(stddev)


def fan_in(size: int, scale: float = 1.0) -> Initializer:
    """Normal with variance scale² / size: `size` unit-variance inputs give outputs of variance scale²."""
    return normal(scale / math.sqrt(size))


def cast(weight: nnx.Variable, dtype: str) -> jax.Array:
    return weight[...].astype(dtype)


def lookup(table: nnx.Param, ids: jax.Array, dtype: str) -> jax.Array:
    """Rows of `table` [V, D] for `ids` int [...]; an id outside the table gives NaN, never another's row."""
    return jnp.take(table[...], ids, axis=0, mode="fill").astype(dtype)


def round_to_dtype(x: jax.Array) -> jax.Array:
    """Rounds `x` to its own dtype, also where XLA would carry float32 on across a bfloat16 value (the identity
    for float32). Without it, what a later operation reads depends on which operations XLA happened to fuse.
    """
    if x.dtype == jnp.float32:
        return x
    info = jnp.finfo(x.dtype)
    return jax.lax.reduce_precision(x, info.nexp, info.nmant)


class RMSNorm(nnx.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019), computed in float32, returned in its input's dtype."""

    def __init__(self, width: int, *, epsilon: float, param_dtype: str, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.scale_D = parameter(rngs, jax.nn.initializers.ones, (width,), ("norm",), param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        return (y * self.scale_D[...].astype(jnp.float32)).astype(x.dtype)


class MLP(nnx.Module):
    """`act(x W_up) W_down`, or gated, `(act(x W_gate) * x W_up) W_down` (Shazeer 2020: silu gives SwiGLU)."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: str,
        gated: bool,
        output_scale: float,
        width_axis: str,
        hidden_axis: str,
        dtype: str,
        param_dtype: str,
        rngs: nnx.Rngs,
    ):
        self.activation, self.gated, self.dtype = activation, gated, dtype
        if gated:
            self.gate_DF = parameter(rngs, fan_in(width), (width, hidden), (width_axis, hidden_axis), param_dtype)
        self.up_DF = parameter(rngs, fan_in(width), (width, hidden), (width_axis, hidden_axis), param_dtype)
        self.down_FD = parameter(
            rngs, fan_in(hidden, output_scale), (hidden, width), (hidden_axis, width_axis), param_dtype
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        up = x @ cast(self.up_DF, self.dtype)
        activate = ACTIVATIONS[self.activation]
        hidden = activate(x @ cast(self.gate_DF, self.dtype)) * up if self.gated else activate(up)
        return hidden @ cast(self.down_FD, self.dtype)


def rotary_angles(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine, sine float32 [B, T, 1, H/2] of rotary positions (Su et al. 2021) for `positions` int [B, T]."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions.astype(jnp.float32)[..., None, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTNH: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates dimension i against i + H/2, the pairing of Llama checkpoints in the Hugging Face layout."""
    cosine, sine = angles
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return rotated.astype(x_BTNH.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a `rate` share of the elements and scales the others up; the identity where `key` is None.

    The rate is rounded to 1/65536: 16 random bits an element cost half of 32 where a CPU computes them.
    """
    if key is None or rate == 0.0:
        return x
    kept = jax.random.bits(key, x.shape, jnp.uint16) >= jnp.uint16(round(rate * 65536))
    return jnp.where(kept, x / (1.0 - rate), 0).astype(x.dtype)

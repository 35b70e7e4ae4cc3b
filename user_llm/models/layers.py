"""Small parts every model is built of: parameters with named axes, norms, MLP, rotary positions, dropout."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from user_llm.errors import UserError
from user_llm.models.linear import linear
from user_llm.models.sharding import shard
from user_llm.models.table_rows import take_rows

Initializer = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}

# Linear map → letters of the dimensions it goes from and to: `q` is a weight `q_DNH`, with a bias `q_bias_NH`.
PROJECTIONS = {
    "q": ("D", "NH"),
    "k": ("D", "KH"),
    "v": ("D", "KH"),
    "o": ("NH", "D"),
    "gate": ("D", "F"),
    "up": ("D", "F"),
    "down": ("F", "D"),
}


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


def identities(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """An initializer: identity matrices one below the other, so that vectors side by side are added up."""
    del key
    return jnp.tile(jnp.eye(shape[1], dtype=dtype), (shape[0] // shape[1], 1))


def cast(weight: nnx.Variable, dtype: str) -> jax.Array:
    return weight[...].astype(dtype)


def lookup(table: nnx.Param, ids: jax.Array, dtype: str) -> jax.Array:
    """Rows of `table` [V, D] for `ids` int [...]; an id outside the table gives NaN, never another's row."""
    return shard(take_rows(table.get_value(), ids).astype(dtype), "batch", ...)


def round_to_dtype(x: jax.Array) -> jax.Array:
    """Rounds `x` to its own dtype, also where XLA would carry float32 on across a bfloat16 value (the identity
    for float32). Without it, what a later operation reads depends on which operations XLA happened to fuse.
    """
    if x.dtype == jnp.float32:
        return x
    info = jnp.finfo(x.dtype)
    return jax.lax.reduce_precision(x, info.nexp, info.nmant)


def round_product(x: jax.Array) -> jax.Array:
    """Rounds a product before something is added to it. XLA contracts float32 product and sum to one rounding or
    leaves two, by what else it happens to fuse, and drops barriers and `reduce_precision` before it decides.
    """
    return jnp.where(jnp.isnan(x), jnp.nan, x)


class RMSNorm(nnx.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019), computed in float32, returned in its input's dtype.

    With `plus_one` it multiplies by 1 + scale, as Gemma does: the weights near zero then decay to a plain norm.
    """

    def __init__(self, width: int, *, epsilon: float, param_dtype: str, rngs: nnx.Rngs, plus_one: bool = False):
        self.epsilon, self.plus_one = epsilon, plus_one
        initializer = jax.nn.initializers.zeros if plus_one else jax.nn.initializers.ones
        self.scale_D = parameter(rngs, initializer, (width,), ("norm",), param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        scale = self.scale_D[...].astype(jnp.float32)
        return (y * (1 + scale if self.plus_one else scale)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm with a bias (Ba et al. 2016), computed in float32, returned in its input's dtype."""

    def __init__(self, width: int, *, epsilon: float, param_dtype: str, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.scale_D = parameter(rngs, jax.nn.initializers.ones, (width,), ("norm",), param_dtype)
        self.bias_D = parameter(rngs, jax.nn.initializers.zeros, (width,), ("norm",), param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon)
        return (y * self.scale_D[...].astype(jnp.float32) + self.bias_D[...].astype(jnp.float32)).astype(x.dtype)


NORMS: dict[str, Callable[..., nnx.Module]] = {
    "rms": RMSNorm,
    "rms_plus_one": functools.partial(RMSNorm, plus_one=True),
    "layer": LayerNorm,
}


class NormOptions(TypedDict):
    """What every norm of a layer is built with."""

    epsilon: float
    param_dtype: str
    rngs: nnx.Rngs


class SublayerOptions(TypedDict):
    """What the attention and the MLP of a layer are both built with."""

    output_scale: float
    width_axis: str
    dtype: str
    param_dtype: str
    rngs: nnx.Rngs


def make_norm(kind: str, width: int, *, epsilon: float, param_dtype: str, rngs: nnx.Rngs) -> nnx.Module:
    """The norm over `width` channels that a config names."""
    if kind not in NORMS:
        raise UserError(f"norm is {kind!r}; known: {', '.join(NORMS)}.")
    return NORMS[kind](width, epsilon=epsilon, param_dtype=param_dtype, rngs=rngs)


class Projections(nnx.Module):
    """Linear maps of `PROJECTIONS`, each with or without a bias and a low-rank adapter (lora.py)."""

    dtype: str
    lora: nnx.Dict[nnx.Module] | None = None

    def project(self, name: str, x: jax.Array) -> jax.Array:
        """Map `name` of `x`, whose last dimensions are the map's inputs."""
        inputs, outputs = PROJECTIONS[name]
        weight = cast(getattr(self, f"{name}_{inputs}{outputs}"), self.dtype)
        y = linear(x, weight, len(inputs))
        bias = getattr(self, f"{name}_bias_{outputs}", None)
        if bias is not None:
            y = y + cast(bias, self.dtype)
        if self.lora is not None and name in self.lora:
            y = y + self.lora[name](x)
        return y


class MLP(Projections):
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
        bias: bool = False,
    ):
        if activation not in ACTIVATIONS:
            raise UserError(f"activation is {activation!r}; known: {', '.join(ACTIVATIONS)}.")
        self.activation, self.gated, self.dtype = activation, gated, dtype
        if gated:
            self.gate_DF = parameter(rngs, fan_in(width), (width, hidden), (width_axis, hidden_axis), param_dtype)
        self.up_DF = parameter(rngs, fan_in(width), (width, hidden), (width_axis, hidden_axis), param_dtype)
        self.down_FD = parameter(
            rngs, fan_in(hidden, output_scale), (hidden, width), (hidden_axis, width_axis), param_dtype
        )
        if bias:
            zeros = jax.nn.initializers.zeros
            if gated:
                self.gate_bias_F = parameter(rngs, zeros, (hidden,), (hidden_axis,), param_dtype)
            self.up_bias_F = parameter(rngs, zeros, (hidden,), (hidden_axis,), param_dtype)
            self.down_bias_D = parameter(rngs, zeros, (width,), ("norm",), param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        up = self.project("up", x)
        activate = ACTIVATIONS[self.activation]
        hidden = activate(self.project("gate", x)) * up if self.gated else activate(up)
        # Its last axis: the weights of stacked layers have `layers` in front.
        return self.project("down", shard(hidden, "batch", ..., self.up_DF.logical_axes[-1]))


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for texts longer than `original_max_length` tokens.

    `linear` divides all by `factor` (Chen et al. 2023). `llama3` (Llama 3.1's reference) divides those that turn
    fewer than `low_frequency_factor` times within the original length, keeps those that turn more than
    `high_frequency_factor` times, and goes from one to the other linearly in between.
    """

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_length: int = 8192

    def __post_init__(self):
        if self.kind not in ("linear", "llama3"):
            raise UserError(f"RopeScaling.kind is {self.kind!r}; known: linear, llama3.")
        if self.factor <= 0:
            raise UserError(f"RopeScaling.factor must be above 0, got {self.factor}.")
        if self.low_frequency_factor >= self.high_frequency_factor:
            raise UserError(
                f"RopeScaling.low_frequency_factor ({self.low_frequency_factor}) must be below "
                f"high_frequency_factor ({self.high_frequency_factor})."
            )

    def __call__(self, frequency: np.ndarray) -> np.ndarray:
        """The stretched frequencies, radians a token, of the plain ones."""
        if self.kind == "linear":
            return frequency / self.factor
        turns = self.original_max_length * frequency / (2 * math.pi)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return frequency * (kept + (1 - kept) / self.factor)


def rotary_angles(
    positions: jax.Array, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cosine, sine float32 [B, T, 1, H/2] of rotary positions (Su et al. 2021) for `positions` int [B, T]."""
    frequency = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling is not None:
        frequency = scaling(frequency)
    angle = positions.astype(jnp.float32)[..., None, None] * frequency.astype(np.float32)
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

"""The one attention of the package: self or cross, grouped key/value heads, cached or not."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from user_llm.errors import UserError
from user_llm.models.layers import NormOptions, Projections, fan_in, make_norm, parameter, rotate
from user_llm.models.sharding import deal, shard

AT_ONCE = 2048 * 1024  # most scores of a head that exist at a time
_BLOCK = 512 * 1024  # of them, where there are more: a block of queries has at most so many
MASKED = -1e30  # finite, so that a query without any slot gives no NaN
# {"key", "value"}: [layers, B, S, K, H]; and {"position"}: int32 [B, S] where layers look through a sliding window.
Cache = dict[str, jax.Array]


class Context(NamedTuple):
    """What a language model attends to besides its text, projected once a user: decoding never projects it again."""

    key: jax.Array  # [G, B, L, K, H]
    value: jax.Array  # [G, B, L, K, H]
    mask: jax.Array  # bool [B, L]

    def for_texts(self, count: int) -> "Context":
        """That of `count` texts a user, [B · count] of them: the last sees all slots, each before it one slot less."""
        length = self.mask.shape[1]
        newest = length - count + jnp.arange(count)
        seen = self.mask[:, None] & (jnp.arange(length) <= newest[:, None])
        key, value = (jnp.repeat(x, count, axis=1) for x in self[:2])
        return Context(key, value, seen.reshape(-1, length))

    def or_else(self, other: "Context", asked: jax.Array) -> "Context":
        """The other one in the rows where bool `asked` [B]."""
        key, value = (jnp.concatenate(pair, axis=2) for pair in zip(self[:2], other[:2], strict=True))
        own, others = self.mask & ~asked[:, None], other.mask & asked[:, None]
        return Context(key, value, jnp.concatenate([own, others], axis=1))

    def deal(self, sizes: Sequence[int]) -> "list[Context]":
        """That of each group of users (`sharding.deal`)."""
        parts = (deal(x, sizes, axis) for x, axis in zip(self, (1, 1, 0), strict=True))
        return [Context(*group) for group in zip(*parts, strict=True)]


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """Squashes `x` smoothly into ±cap, as Gemma 2 does with its scores and logits (Bello et al. 2016)."""
    return cap * jnp.tanh(x / cap)


@contextlib.contextmanager
def all_at_once() -> Iterator[None]:
    """Programs that are traced herein attend without a loop: XLA counts what a loop does once."""
    global AT_ONCE
    most, AT_ONCE = AT_ONCE, sys.maxsize
    try:
        yield
    finally:
        AT_ONCE = most


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: jax.Array,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Softmax attention [B, T, N, H], softmax in float32; `mask` bool [B, T or 1, S]: the slots each query sees.

    Scores are `scale` q·k, by default 1/√H of it, and soft-capped at ±`cap` if that is given.
    A query that sees no slot gets their plain mean, finite in value and gradient: callers mask such rows out.
    Where there are many slots for many queries, the scores of some queries exist at a time, and are made once more for
    the gradient.
    """
    queries, slots = q_BTNH.shape[1], k_BSKH.shape[1]
    if queries * slots <= AT_ONCE:
        return _attend(q_BTNH, k_BSKH, v_BSKH, mask, scale=scale, cap=cap)
    size = max(1, _BLOCK // slots)
    full = (queries - 1) // size * size  # queries before the last block, which begins further left if it is no full one

    @jax.checkpoint
    def some(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        q_BTNH, start = part
        seen = mask if mask.shape[1] == 1 else jax.lax.dynamic_slice_in_dim(mask, start, size, axis=1)
        return _attend(q_BTNH, k_BSKH, v_BSKH, seen, scale=scale, cap=cap)

    blocks = q_BTNH[:, :full].reshape(len(q_BTNH), full // size, size, *q_BTNH.shape[2:])
    blocks = jnp.concatenate([blocks, q_BTNH[:, None, queries - size :]], axis=1)
    starts = jnp.minimum(jnp.arange(blocks.shape[1]) * size, queries - size)
    mixed = jnp.moveaxis(jax.lax.map(some, (jnp.moveaxis(blocks, 1, 0), starts)), 0, 1)
    first = mixed[:, :-1].reshape(len(mixed), full, *mixed.shape[3:])
    return jnp.concatenate([first, mixed[:, -1, full - queries :]], axis=1)


def _attend(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: jax.Array, *, scale: float | None, cap: float | None
) -> jax.Array:
    """`attend`, all queries at once."""
    num_kv_heads, head_dim = k_BSKH.shape[2:]
    scale = head_dim**-0.5 if scale is None else scale
    grouped = q_BTNH.reshape(*q_BTNH.shape[:2], num_kv_heads, -1, head_dim) * scale
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, k_BSKH, preferred_element_type=jnp.float32)
    if cap is not None:
        scores = softcap(scores, cap)
    scores = jnp.where(mask[:, None, None], scores, MASKED)
    # Not `jax.nn.dot_product_attention`: with heads leading and the softmax's division left to the end, where it
    # passes over [T, H] and not [T, S], an encoder's step on CPU (16-wide heads) takes 8 to 10 % less time.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    mixed = jnp.einsum("BKGTS,BSKH->BKGTH", weights.astype(v_BSKH.dtype), v_BSKH)
    mixed = mixed / weights.sum(axis=-1, keepdims=True).astype(mixed.dtype)
    return jnp.einsum("BKGTH->BTKGH", mixed).reshape(q_BTNH.shape)


def write_cache(
    cache: Cache, layer: int | jax.Array, offset: int | jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array
) -> Cache:
    """Writes T new keys and values into slots offset … offset + T - 1 of one layer (both may be traced)."""

    def write(slots: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(slots, new[None].astype(slots.dtype), (layer, 0, offset, 0, 0))

    return {**cache, "key": write(cache["key"], k_BTKH), "value": write(cache["value"], v_BTKH)}


class Attention(Projections):
    """Projections around `attend`; keys and values come from vectors of width `key_width` (cross: U).

    `query_scale` and `score_cap` are `attend`'s. `qk_norm` is the kind of norm, if any, that each head's query and
    key pass before they are rotated (Henry et al. 2020).
    """

    q_norm = k_norm = None

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        key_width: int,
        output_scale: float,
        width_axis: str,
        key_axis: str,
        dtype: str,
        param_dtype: str,
        rngs: nnx.Rngs,
        query_scale: float | None = None,
        score_cap: float | None = None,
        qk_norm: str | None = None,
        norm_eps: float = 1e-6,
        qkv_bias: bool = False,
        output_bias: bool = False,
    ):
        if num_heads % num_kv_heads:
            raise UserError(f"num_heads ({num_heads}) must be a multiple of num_kv_heads ({num_kv_heads}).")
        self.dtype, self.query_scale, self.score_cap = dtype, query_scale, score_cap
        keys = ((key_width, num_kv_heads, head_dim), (key_axis, "kv_heads", "head_dim"), param_dtype)
        self.q_DNH = parameter(
            rngs, fan_in(width), (width, num_heads, head_dim), (width_axis, "heads", "head_dim"), param_dtype
        )
        self.k_DKH = parameter(rngs, fan_in(key_width), *keys)
        self.v_DKH = parameter(rngs, fan_in(key_width), *keys)
        self.o_NHD = parameter(
            rngs,
            fan_in(num_heads * head_dim, output_scale),
            (num_heads, head_dim, width),
            ("heads", "head_dim", width_axis),
            param_dtype,
        )
        zeros = jax.nn.initializers.zeros
        if qkv_bias:
            bias = (zeros, (num_kv_heads, head_dim), ("kv_heads", "head_dim"), param_dtype)
            self.q_bias_NH = parameter(rngs, zeros, (num_heads, head_dim), ("heads", "head_dim"), param_dtype)
            self.k_bias_KH = parameter(rngs, *bias)
            self.v_bias_KH = parameter(rngs, *bias)
        if output_bias:
            self.o_bias_D = parameter(rngs, zeros, (width,), ("norm",), param_dtype)
        if qk_norm is not None:
            norm = NormOptions(epsilon=norm_eps, param_dtype=param_dtype, rngs=rngs)
            self.q_norm = make_norm(qk_norm, head_dim, **norm)
            self.k_norm = make_norm(qk_norm, head_dim, **norm)

    def keys_values(
        self, x: jax.Array, angles: tuple[jax.Array, jax.Array] | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, S, K, H] of vectors [B, S, key_width]; `angles` rotates the keys."""
        keys, values = (shard(self.project(name, x), "batch", None, "kv_heads", None) for name in ("k", "v"))
        return self._place(keys, self.k_norm, angles), values

    def __call__(
        self,
        x: jax.Array,
        k_BSKH: jax.Array,
        v_BSKH: jax.Array,
        mask: jax.Array,
        angles: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """[B, T, D] attends to given keys and values [B, S, K, H] under bool `mask` [B, T or 1, S]."""
        query = shard(self.project("q", x), "batch", None, "heads", None)
        query = self._place(query, self.q_norm, angles)
        mixed = attend(query, k_BSKH, v_BSKH, mask, scale=self.query_scale, cap=self.score_cap)
        return self.project("o", shard(mixed, "batch", None, "heads", None))

    def _place(
        self, heads: jax.Array, norm: nnx.Module | None, angles: tuple[jax.Array, jax.Array] | None
    ) -> jax.Array:
        """Queries or keys [B, T, heads, H], normed and at their positions."""
        heads = heads if norm is None else norm(heads)
        return heads if angles is None else rotate(heads, angles)

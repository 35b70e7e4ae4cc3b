"""Sums over the nodes of a trie that belong together."""

import jax
import jax.numpy as jnp


def segment_logsumexp(values: jax.Array, segments: jax.Array, count: int, *, are_sorted: bool = False) -> jax.Array:
    """Of logarithms float32 `[N, B]` by segment int `[N]`: float32 `[count, B]`, -inf where nothing is."""
    most = jax.ops.segment_max(values, segments, count, indices_are_sorted=are_sorted)
    finite = jnp.where(most > -jnp.inf, most, 0.0)
    sums = jax.ops.segment_sum(jnp.exp(values - finite[segments]), segments, count, indices_are_sorted=are_sorted)
    return jnp.where(most > -jnp.inf, jnp.log(sums) + finite, -jnp.inf)

"""When events happened, as encoders read it: seconds between events, in buckets that grow with them."""

import jax
import jax.numpy as jnp

BUCKETS = 64  # two an octave: from a second to 2**31 of them


def bucket(seconds: jax.Array) -> jax.Array:
    """Which of `BUCKETS` a time span falls into, int32 [...] of seconds int [...]; what is negative, into the first."""
    octaves = jnp.log2(1.0 + jnp.maximum(seconds, 0).astype(jnp.float32))
    return jnp.minimum(2 * octaves, BUCKETS - 1).astype(jnp.int32)


def following(ago: jax.Array, user: jax.Array | None) -> jax.Array:
    """Of the event after each, how many seconds before the asked event it was: int32 [B, S]; 0 behind the newest.

    Args:
      ago: int [B, S], seconds from an event to the asked one.
      user: int [B, S], whose event it is, where histories share rows.
    """
    later = jnp.concatenate([ago[:, 1:], jnp.zeros_like(ago[:, :1])], axis=1)
    if user is None:
        return later
    next_user = jnp.concatenate([user[:, 1:], jnp.zeros_like(user[:, :1])], axis=1)
    return jnp.where(user == next_user, later, 0)


def since_previous(ago: jax.Array, mask: jax.Array, user: jax.Array | None) -> jax.Array:
    """Seconds from the event before each, int32 [B, S]; 0 at the oldest; `mask` bool [B, S]: where there are events."""

    def shifted(x: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.zeros_like(x[:, :1]), x[:, :-1]], axis=1)

    there = shifted(mask) & mask
    if user is not None:
        there &= shifted(user) == user
    return jnp.where(there, shifted(ago) - ago, 0)

"""Random negatives of a sampled softmax: items by a power of their popularity, drawn on the device."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

POWER = 0.75  # of an item's count (Mikolov et al. 2013): between uniform and as in the data
_BITS = 32


class Negatives(NamedTuple):
    """A distribution over items, in integers: item i has those of 2³² numbers that lie from its start to the next.

    What is drawn is thus exactly what `log_probability` says, where a float32 cumulative sum has no place for the rare
    ones of a hundred thousand items and more. It takes 8 bytes an item.

    Attributes:
      items: int32 `[n]`, those that may be drawn.
      starts: uint32 `[n]`, ascending, from 0.
    """

    items: np.ndarray
    starts: np.ndarray

    @classmethod
    def by_popularity(cls, counts: np.ndarray, dropped: np.ndarray | None = None, power: float = POWER) -> "Negatives":
        """Items by `counts ** power`; what has never occurred as if once.

        Args:
          counts: int `[I+1]`, how often each item occurs; item 0 is never drawn.
          dropped: bool `[I+1]`, items that are never drawn either.
          power: 0 draws all alike.
        """
        drawn = np.ones(len(counts), bool) if dropped is None else ~dropped
        drawn[0] = False
        items = np.flatnonzero(drawn).astype(np.int32)
        mass = np.maximum(np.asarray(counts, np.float64)[items], 1.0) ** power
        numbers = 2**_BITS
        widths = np.maximum(np.floor(mass / mass.sum() * (numbers - len(items))), 1).astype(np.int64)
        left = numbers - widths.sum()  # of rounding: at least none, and hardly more than one an item
        widths += left // len(items)
        widths[: left % len(items)] += 1
        return cls(items, (np.cumsum(widths) - widths).astype(np.uint32))

    def draw(self, key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """Items int32 `[count]`, with replacement, and the float32 `[count]` log of the chance of each in one draw."""
        if len(self.items) == 1:  # all numbers: one more than 32 bits can count
            return jnp.full(count, self.items[0]), jnp.zeros(count)
        starts = jnp.asarray(self.starts)
        numbers = jax.random.bits(key, (count,), jnp.uint32)
        place = jnp.searchsorted(starts, numbers, side="right") - 1
        following = starts[jnp.minimum(place + 1, len(self.starts) - 1)]
        # Of the last item it is 2³², which is 0 here: the difference comes out right all the same.
        width = jnp.where(place + 1 < len(self.starts), following, 0) - starts[place]
        return jnp.asarray(self.items)[place], jnp.log(width.astype(jnp.float32)) - _BITS * math.log(2)

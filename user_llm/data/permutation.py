"""A random order of n things by a formula: the place of each is computed alone, and no table of n is ever made.

A Feistel network on pairs (i div b, i mod b) of a grid of a × b >= n places: each round moves one of the two by a hash
of the other, which can be undone, so that the whole is a permutation of the grid. What lands outside of the n is sent
through again until it lands inside ("cycle walking"; Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
"""

import math
from collections.abc import Sequence

import numpy as np

_FEW = 4096
"""Below so many places a round has little to hash, and more rounds are needed until all orders are equally likely."""
_ROUNDS, _ROUNDS_OF_FEW = 6, 12  # even, so that both halves end where they began
_SPREAD = np.uint64(0xD6E8FEB86659FD93)  # odd; multiplies the high bits of a hash out of all of its bits
_HALF = np.uint64(32)


class Permutation:
    """A permutation of 0 … size-1, which the seed alone gives.

    It is random enough for training, and no cipher: who sees much of an order can find its key.

    Args:
        size: n, from 1 to 2**62.
        seed: numbers from 0.
    """

    def __init__(self, size: int, seed: Sequence[int]):
        if not 1 <= size <= 2**62:
            raise ValueError(f"a permutation has 1 to 2**62 places, got {size}.")
        rounds = _ROUNDS_OF_FEW if size < _FEW else _ROUNDS
        self._size = np.uint64(size)
        tall = math.isqrt(size - 1) + 1
        self._sizes = np.uint64(tall), np.uint64(-(-size // tall))
        keys = np.random.SeedSequence(seed).generate_state(2 * rounds, np.uint64)
        self._keys = tuple(zip(keys[:rounds], keys[rounds:] | np.uint64(1), strict=True))

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """What stands at each of the places int [B] of the order: int64 [B]."""
        found = self._once(np.asarray(places).astype(np.uint64))
        outside = np.flatnonzero(found >= self._size)
        while len(outside):
            found[outside] = self._once(found[outside])
            outside = outside[found[outside] >= self._size]
        return found.astype(np.int64)

    def _once(self, places: np.ndarray) -> np.ndarray:
        (size, other), width = self._sizes, self._sizes[1]
        moved = places // width
        still = places - moved * width
        mixed = np.empty_like(places)
        for add, multiply in self._keys:
            np.add(still, add, out=mixed)
            mixed *= multiply
            mixed ^= mixed >> _HALF
            mixed *= _SPREAD
            mixed >>= _HALF
            mixed *= size
            mixed >>= _HALF  # now evenly from 0 to size - 1
            moved += mixed
            np.subtract(moved, size, out=mixed)
            np.minimum(moved, mixed, out=moved)  # modulo: what is below `size` wraps to a huge number instead
            moved, still, size, other = still, moved, other, size
        return moved * width + still

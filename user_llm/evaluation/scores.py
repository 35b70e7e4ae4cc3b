"""Scores of all answers, handed out in blocks: nobody has to hold a row of millions for each user of a batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np

Array = np.ndarray | jax.Array


@dataclass(frozen=True)
class ItemScores:
    """What a recommender says of the users of one batch: float `[B, I+1]`, higher is better.

    Attributes:
      width: I + 1, the items (or whatever the answers are) with the padding 0, which ranks nowhere.
      block: (first, count) → float `[B, count]` of the items from `first` on, NumPy's or on the device. What lies
        behind the last item may be missing, or be anything. All blocks have one dtype.
    """

    width: int
    block: Callable[[int, int], Array]

    @classmethod
    def dense(cls, values: Array) -> "ItemScores":
        """Of few answers: float `[B, I+1]` as they are."""
        width = values.shape[1]
        return cls(width, lambda first, count: values if count >= width else values[:, first : first + count])

    def all(self) -> Array:
        """Float `[B, I+1]`, for who needs all of a user at once; -inf or anything in column 0."""
        return self.block(0, self.width)


Scores = Callable[[Mapping[str, np.ndarray]], ItemScores]
"""A recommender: the scores of a batch of `Windows.gather`."""

"""What every contender of the encoder step does: the same model sizes, the same sequences of items.

Read by RecTools' environment too, so it needs NumPy alone.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Workload:
    """One training step over `batch_size` histories; MovieLens-20M's catalogue, the paper's encoder."""

    batch_size: int
    history_length: int = 50
    num_items: int = 26_744
    num_layers: int = 6
    width: int = 128
    num_heads: int = 8
    hidden: int = 512

    def sequences(self) -> np.ndarray:
        """Item ids int32 [B, S + 1]: events 0 … S-1 are the history, 1 … S the targets. Without padding."""
        shape = (self.batch_size, self.history_length + 1)
        return np.random.default_rng(0).integers(1, self.num_items + 1, shape, dtype=np.int32)

"""HSTU (Zhai et al. 2024): gated units in place of softmax attention."""

from user_llm.encoders.autoregressive import Autoregressive
from user_llm.models.hstu import HSTU


class GatedUnits(Autoregressive):
    """Predicts the next event at every position, as the autoregressive encoder."""

    name = "hstu"

    def build(self, config, dims, sizes, rngs):
        """See `EncoderKind`."""
        return HSTU(dims, **sizes._asdict(), rngs=rngs)

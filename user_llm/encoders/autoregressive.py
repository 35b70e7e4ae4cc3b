"""The autoregressive encoder (paper 3.1); with the item alone as a feature it is SASRec."""

from user_llm.encoders.base import EncoderKind
from user_llm.models.autoregressive_encoder import AutoregressiveEncoder
from user_llm.training.objectives import autoregressive_objective


class Autoregressive(EncoderKind):
    """Predicts the next event at every position."""

    name = "autoregressive"
    packs = True
    causal = True
    reads_times = True
    reads_item_text = True
    samples = True

    def build(self, config, dims, sizes, rngs):
        """See `EncoderKind`."""
        return AutoregressiveEncoder(dims, **sizes._asdict(), rngs=rngs)

    def objective(self, config, label_counts, dropped=None):
        """See `EncoderKind`."""
        return autoregressive_objective(config.chunk_rows, dropped, self.draw(config, label_counts, dropped))

"""BERT4Rec (Sun et al. 2019), a baseline of the paper."""

from user_llm.encoders.base import EncoderKind
from user_llm.models.bert4rec import Bert4Rec
from user_llm.training.objectives import masked_objective


class MaskedEvents(EncoderKind):
    """Fills in masked events, seeing both sides of each."""

    name = "bert4rec"
    reads_item_text = True
    samples = True

    def build(self, config, dims, sizes, rngs):
        """See `EncoderKind`."""
        return Bert4Rec(dims, **sizes._asdict(), rngs=rngs)

    def objective(self, config, label_counts, dropped=None):
        """See `EncoderKind`."""
        draw = self.draw(config, label_counts, dropped)
        return masked_objective(config.chunk_rows, config.bert4rec.mask_rate, dropped, draw)

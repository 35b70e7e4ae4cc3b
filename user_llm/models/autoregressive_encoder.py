"""The autoregressive user encoder (paper 3.1 and appendix A): events in, one embedding an event out.

With the item feature alone it is SASRec (Kang & McAuley 2018) trained by a softmax over the whole catalogue.
"""

import jax

from user_llm.models.language_model import causal_mask
from user_llm.models.user_encoder import EncoderConfig, EventEncoder, History, Packing

__all__ = ["AutoregressiveEncoder", "EncoderConfig"]


class AutoregressiveEncoder(EventEncoder):
    """A causal Transformer over events: what follows an event is read off its embedding."""

    def __call__(
        self, history: History, mask: jax.Array, *, packing: Packing | None = None, key: jax.Array | None = None
    ) -> jax.Array:
        """User embeddings [B, S, U]: embedding s has seen events 0 … s; zero where there is no event.

        Args:
          history: `item` and `rating`, int [B, S], padded on the left: the newest event is in slot S - 1.
          mask: bool [B, S], where there is an event.
          packing: where histories share rows, in any slots that follow one another.
          key: of dropout; None runs without.
        """
        sees = causal_mask(mask)
        if packing is not None:
            sees = packing.apart(sees)
        x = self.embedding(history)
        return self.transform(x, mask, sees, ago=history.get("ago"), packing=packing, key=key)

    def query(self, history: History, mask: jax.Array) -> jax.Array:
        """[B, U], the embedding of the newest event."""
        return self(history, mask)[:, -1]

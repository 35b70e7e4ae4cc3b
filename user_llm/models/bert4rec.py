"""BERT4Rec (Sun et al. 2019): events that see both ways, trained to fill in the ones that are masked."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from user_llm.models.layers import cast, normal, parameter
from user_llm.models.user_encoder import EncoderConfig, EventEncoder, History, both_ways


class Bert4Rec(EventEncoder):
    """A bidirectional Transformer over events; a masked event is read off the embedding in its slot.

    With the item feature alone it is the published model; with more, a masked event hides all its features.
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        item_categories: np.ndarray,
        num_categories: int,
        num_ratings: int,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            config,
            item_categories=item_categories,
            num_categories=num_categories,
            num_ratings=num_ratings,
            rngs=rngs,
        )
        self.mask_U = parameter(rngs, normal(0.02), (config.width,), ("user",), config.param_dtype)

    def __call__(
        self,
        history: History,
        mask: jax.Array,
        *,
        masked: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """User embeddings [B, S, U]: each has seen all events that are not masked; zero where there is none.

        Args:
          history: `item` and `rating`, int [B, S], padded on the left: the newest event is in slot S - 1.
          mask: bool [B, S], where there is an event.
          masked: bool [B, S], the events to hide; None hides none.
          key: of dropout; None runs without.
        """
        x = self.embedding(history)
        if masked is not None:
            x = jnp.where(masked[..., None], cast(self.mask_U, self.config.dtype), x)
        return self.transform(x, mask, both_ways(mask), key=key)

    def query(self, history: History, mask: jax.Array) -> jax.Array:
        """[B, U], the embedding of an event that is not known yet.

        A masked event stands behind the history, whose oldest event leaves where `max_length` has no room for both.
        """
        room = self.config.max_length

        def append(slots: jax.Array, value: int | bool) -> jax.Array:
            return jnp.pad(slots, ((0, 0), (0, 1)), constant_values=value)[:, -room:]

        longer = {name: append(ids, 0) for name, ids in history.items()}
        masked = append(jnp.zeros_like(mask), True)
        return self(longer, append(mask, True), masked=masked)[:, -1]

    def drop_pretraining(self) -> None:
        """Leaves out the softmaxes' projections and the masked event: a language model reads embeddings only."""
        super().drop_pretraining()
        del self.mask_U

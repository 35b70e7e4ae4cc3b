"""User-LLM: a language model that reads a user's embeddings (paper 3.2)."""

from collections.abc import Mapping

import jax
from flax import nnx

from user_llm.models.attention import Cache
from user_llm.models.cross_attention import Connector, Context
from user_llm.models.language_model import LanguageModel


class UserLLM(nnx.Module):
    """An encoder, a language model, and the connector between them.

    Any encoder will do that maps (history, mask) to embeddings [B, S, U] of the connector's context width.
    """

    def __init__(self, encoder: nnx.Module, connector: Connector, language_model: LanguageModel):
        self.encoder = encoder
        self.connector = connector
        self.language_model = language_model

    def encode(self, history: Mapping[str, jax.Array], mask: jax.Array, *, key: jax.Array | None = None) -> Context:
        """Context of the users whose events are `history` (int [B, S] each) where bool `mask` [B, S]."""
        return self.connector.context(self.encoder(history, mask, key=key), mask)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        *,
        context: Context | None = None,
        cache: Cache | None = None,
        offset: int | jax.Array = 0,
    ) -> tuple[jax.Array, Cache | None]:
        """As `LanguageModel.__call__`, attending to `context`; None is the language model alone."""
        return self.language_model(
            tokens, positions, mask, cache=cache, offset=offset, cross=self.connector, context=context
        )

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 [..., V] of hidden states [..., D]."""
        return self.language_model.logits(hidden)

    def init_cache(self, batch: int, length: int, context: Context | None = None) -> Cache:
        """Empty keys and values of `length` slots for `batch` rows that will attend to `context`."""
        return self.language_model.init_cache(batch, length, context)

"""User-LLM: a language model that reads a user's embeddings (paper 3.2)."""

from collections.abc import Mapping
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from flax import nnx

from user_llm.errors import UserError
from user_llm.models.attention import Cache, Context
from user_llm.models.cross_attention import CrossAttention
from user_llm.models.language_model import LanguageModel
from user_llm.models.perceiver import Perceiver
from user_llm.models.soft_prompt import Prefix
from user_llm.models.user_encoder import EventEncoder, UserEncoder


class Connector(Protocol):
    """What joins encoder and language model: `CrossAttention`, `SoftPrompt`. Each reads contexts of its own making."""

    def context(self, embeddings: jax.Array, mask: jax.Array) -> Context | Prefix: ...

    def __call__(
        self,
        language_model: LanguageModel,
        tokens: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        *,
        context: Any,
        cache: Cache | None,
        offset: int | jax.Array,
    ) -> tuple[jax.Array, Cache | None]: ...

    def init_cache(self, language_model: LanguageModel, batch: int, length: int, context: Any) -> Cache: ...


class UserLLM(nnx.Module):
    """A user encoder, a language model, and between them a connector, with a Perceiver before it or not.

    Without encoder and connector it is the language model alone, which knows a user from the prompt's text (the
    paper's TextPrompt).

    Args:
      encoder: maps (history, mask) to embeddings [B, S', U], and its `output_mask` a mask [B, S] to theirs [B, S'].
        It becomes a part of the model, and drops what only its pretraining needs.
      perceiver: reads the embeddings into few latents; None hands on the embeddings themselves.
      connector: what the language model does with either.
      newest: of an encoder with an embedding an event, how many of the latest are handed on; 0: all.

    Raises:
      UserError: an encoder without a connector, or a Perceiver or a connector without an encoder.
    """

    def __init__(
        self,
        encoder: UserEncoder | None,
        perceiver: Perceiver | None,
        connector: Connector | None,
        language_model: LanguageModel,
        *,
        newest: int = 0,
    ):
        if (encoder is None) != (connector is None) or (encoder is None and perceiver is not None):
            parts = {"encoder": encoder, "Perceiver": perceiver, "connector": connector}
            given = " and ".join(name for name, part in parts.items() if part is not None)
            raise UserError(
                f"User-LLM with {given} alone: an encoder needs a connector, and a Perceiver or a connector an encoder."
            )
        if encoder is not None:
            encoder.drop_pretraining()
        self.encoder = encoder
        self.perceiver = perceiver
        self.connector = connector
        self.language_model = language_model
        self.newest = newest

    def encode(
        self,
        history: Mapping[str, jax.Array],
        mask: jax.Array,
        *,
        key: jax.Array | None = None,
        texts: int = 1,
        items: jax.Array | None = None,
    ) -> Context | Prefix | None:
        """Context of the users whose events are `history` (int [B, S] each) where bool `mask` [B, S].

        It may be stored and used for any number of texts. None where the model has no encoder.

        Args:
          key: of the encoder's dropout.
          texts: K, how many read each history: the last all of it, each before it one event less. The context is then
            of [B · K] texts, for which a causal encoder and cross-attention without a Perceiver read a history once.
          items: int [B · K]; a text with an item above 0 reads no history, but one embedding that asks for this item.
        """
        if self.encoder is None or self.connector is None:
            return None
        context = self.context(*self.embed(history, mask, key=key, texts=texts))
        if texts > 1 and not self.newest:
            context = cast(Context, context).for_texts(texts)
        if items is not None:
            context = cast(Context, context).or_else(self.item_context(items), items > 0)
        return context

    def item_context(self, items: jax.Array) -> Context:
        """Context of texts that read no history, but one embedding that asks for an item each, int [B].

        The encoder learns nothing of it: the items lie where histories have put them.
        """
        states = jax.lax.stop_gradient(cast(EventEncoder, self.encoder).item_states(items))[:, None]
        return cast(Context, self.context(states, jnp.ones(states.shape[:2], bool)))

    def embed(
        self, history: Mapping[str, jax.Array], mask: jax.Array, *, key: jax.Array | None = None, texts: int = 1
    ) -> tuple[jax.Array, jax.Array]:
        """User embeddings [B, N, U], the Perceiver's latents where there is one, and bool [B, N] which there are.

        The arguments are those of `encode`. They may be stored, and are all that `context` reads of a user. With
        several `texts` each has its own `newest`, [B · K, N, U]; all embeddings are the same for all.
        """
        encoder = cast(UserEncoder, self.encoder)
        embeddings, mask = encoder(history, mask, key=key), encoder.output_mask(mask)
        if self.newest:
            embeddings, mask = _newest(embeddings, mask, self.newest, texts)
        return (embeddings, mask) if self.perceiver is None else self.perceiver(embeddings, mask)

    def context(self, embeddings: jax.Array, mask: jax.Array) -> Context | Prefix | None:
        """What the language model attends to of user embeddings [B, N, U], where bool `mask` [B, N]."""
        return None if self.connector is None else self.connector.context(embeddings, mask)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        *,
        context: Context | Prefix | None = None,
        cache: Cache | None = None,
        offset: int | jax.Array = 0,
    ) -> tuple[jax.Array, Cache | None]:
        """As `LanguageModel.__call__`, reading `context`; None is the language model alone.

        A cache comes from `init_cache` with the same context.
        """
        if context is None:
            return self.language_model(tokens, positions, mask, cache=cache, offset=offset)
        connector = cast(Connector, self.connector)  # it made the context
        return connector(self.language_model, tokens, positions, mask, context=context, cache=cache, offset=offset)

    @property
    def first_layer(self) -> int:
        """The layer of the language model below which no state depends on the user."""
        return self.connector.first_layer if isinstance(self.connector, CrossAttention) else 0

    def above(
        self,
        x_BTD: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        *,
        context: Context | None = None,
        cache: Cache | None = None,
        offset: int | jax.Array = 0,
    ) -> tuple[jax.Array, Cache | None]:
        """As `__call__`, of a text whose states `x_BTD` are what layer `first_layer` reads (`LanguageModel.lower`)."""
        cross = None if context is None else cast(CrossAttention, self.connector)
        return self.language_model.read(
            x_BTD,
            positions,
            mask,
            cache=cache,
            offset=offset,
            cross=cross,
            context=context,
            first=self.first_layer,
        )

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 [..., V] of hidden states [..., D]."""
        return self.language_model.logits(hidden)

    def init_cache(self, batch: int, length: int, context: Context | Prefix | None = None) -> Cache:
        """A cache with `length` free slots for the text of `batch` rows that will be read with `context`."""
        if context is None:
            return self.language_model.init_cache(batch, length)
        connector = cast(Connector, self.connector)
        return connector.init_cache(self.language_model, batch, length, context)


def _newest(embeddings: jax.Array, mask: jax.Array, count: int, texts: int) -> tuple[jax.Array, jax.Array]:
    """The latest `count` of embeddings [B, S, U], of each of K texts: [B · K, count, U] and bool [B · K, count].

    The last text has the latest of all, each before it those of an event earlier.
    """
    length, width = embeddings.shape[1:]
    slots = length - texts + jnp.arange(texts)[:, None] + jnp.arange(1 - count, 1)
    there = mask[:, jnp.maximum(slots, 0)] & (slots >= 0)
    return embeddings[:, jnp.maximum(slots, 0)].reshape(-1, count, width), there.reshape(-1, count)

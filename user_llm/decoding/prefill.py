"""A prompt's keys and values, computed once per row, and tokens that continue it."""

from typing import Generic, NamedTuple, Protocol, TypeVar, cast

import jax
import jax.numpy as jnp

from user_llm.models.attention import Cache

# What a model reads besides the text (`UserLLM.encode`): handed on as it is.
Context = TypeVar("Context")
_ReadContext = TypeVar("_ReadContext", contravariant=True)


class DecodingModel(Protocol[_ReadContext]):
    """What decoding asks of a model; `LanguageModel` and `UserLLM` both are one (and JAX pytrees)."""

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        *,
        context: _ReadContext | None,
        cache: Cache,
        offset: int | jax.Array,
    ) -> tuple[jax.Array, Cache | None]: ...

    def logits(self, hidden: jax.Array) -> jax.Array: ...

    def init_cache(self, batch: int, length: int, context: _ReadContext | None) -> Cache: ...


class Prompt(NamedTuple, Generic[Context]):
    """Prompts that have been read, with free cache slots behind them.

    Attributes:
        hidden: `[B, 1, D]`, the state after each row's last token.
        lengths: int32 `[B]`, tokens in each row.
        visible: bool `[B, P]`, cache slots that hold a token rather than padding.
        cache: the model's cache, with `P + free_slots` slots for text.
        context: the model's context, or None.
    """

    hidden: jax.Array
    lengths: jax.Array
    visible: jax.Array
    cache: Cache
    context: Context | None


def prefill(
    model: DecodingModel[Context],
    tokens: jax.Array,
    lengths: jax.Array,
    context: Context | None,
    *,
    free_slots: int,
) -> Prompt[Context]:
    """Reads right-padded prompts into a fresh cache.

    Args:
        tokens: int32 `[B, P]`; what stands behind a row's length is never seen.
        lengths: int32 `[B]`, tokens in each row. They, and no padding id, say where a prompt ends: every id may be
            a word of some vocabulary. A row of length 0 (a batch's filler) is read as one token, so that nothing
            becomes NaN.
        free_slots: cache slots to keep behind the prompt for what follows.

    Raises:
        ValueError: tokens or lengths of another shape.
    """
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise ValueError(
            f"prompt_tokens must be [batch, length >= 1], got shape {tokens.shape}: start prompts with BOS"
        )
    batch, length = tokens.shape
    if lengths.shape != (batch,):
        raise ValueError(f"prompt_lengths must be [{batch}], one for each prompt, got shape {lengths.shape}")
    slots = jnp.arange(length)
    lengths = jnp.maximum(lengths, 1)
    visible = slots < lengths[:, None]
    causal = (slots[:, None] >= slots) & visible[:, None, :]
    hidden, cache = model(
        tokens,
        jnp.broadcast_to(slots, tokens.shape),
        jnp.pad(causal, ((0, 0), (0, 0), (0, free_slots))),
        context=context,
        cache=model.init_cache(batch, length + free_slots, context),
        offset=0,
    )
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    return Prompt(last, lengths, visible, cast(Cache, cache), context)  # a cache went in


def extend(
    model: DecodingModel[Context],
    prompt: Prompt[Context],
    tokens: jax.Array,
    *,
    steps: jax.Array | int,
    sees: jax.Array,
    slot: jax.Array | int,
) -> tuple[jax.Array, Cache]:
    """Runs `tokens` behind the prompt; they need not follow each other.

    Args:
        tokens: int32 `[B, T]`, put into free slots `slot … slot + T`.
        steps: how far behind the prompt's end each token stands (0: right behind it), broadcast to `[B, T]`.
        sees: bool `[1 or B, T, free slots]`, the free slots each token attends to, its own among them. All
            tokens attend to the whole prompt.

    Returns:
        hidden `[B, T, D]` and the updated cache.
    """
    batch, length = prompt.visible.shape
    count = tokens.shape[1]
    mask = jnp.concatenate(
        [
            jnp.broadcast_to(prompt.visible[:, None, :], (batch, count, length)),
            jnp.broadcast_to(sees, (batch, *sees.shape[1:])),
        ],
        axis=-1,
    )
    positions = jnp.broadcast_to(prompt.lengths[:, None] + steps, (batch, count))
    hidden, cache = model(tokens, positions, mask, context=prompt.context, cache=prompt.cache, offset=length + slot)
    return hidden, cast(Cache, cache)

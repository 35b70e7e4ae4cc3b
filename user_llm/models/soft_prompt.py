"""Soft prompt: user embeddings as vectors in front of the text (paper 4.5 and appendix B; Lester et al. 2021)."""

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from user_llm.models.attention import Cache
from user_llm.models.language_model import LanguageModel, LanguageModelConfig, causal_mask
from user_llm.models.layers import cast, fan_in, normal, parameter
from user_llm.models.linear import linear
from user_llm.models.sharding import deal

# Initial length of the vectors, in token embeddings (1/√D a channel in ours, and near it in published models).
# Behind a frozen 3-layer LLM (width 32, two seeds) a loss of 1.01 and 0.88 after 400 steps with vectors as long as
# tokens was 0.78 and 0.73 with these, and 0.79 and 0.81 at 5.7. Much longer ones drown what the layers add to them.
LENGTH = 2.4


class Prefix(NamedTuple):
    """What stands in front of a text: a vector for each user embedding, behind them the task prompt."""

    vectors: jax.Array  # [B, S, D]
    mask: jax.Array  # bool [B, S]: slots that hold something

    def deal(self, sizes: Sequence[int]) -> "list[Prefix]":
        """That of each group of users (`sharding.deal`)."""
        return [Prefix(*group) for group in zip(*(deal(x, sizes) for x in self), strict=True)]

    @property
    def lengths(self) -> jax.Array:
        """int32 [B]: slots that hold something."""
        return jnp.sum(self.mask, axis=-1, dtype=jnp.int32)

    @property
    def positions(self) -> jax.Array:
        """int32 [B, S]: slots that hold nothing take no position, so that padding moves nothing."""
        return jnp.maximum(jnp.cumsum(self.mask, axis=-1, dtype=jnp.int32) - 1, 0)


@dataclass(frozen=True)
class SoftPromptConfig:
    """`task_length`: learned vectors of the task prompt; 0 leaves the user's alone."""

    task_length: int = 10


class SoftPrompt(nnx.Module):
    """The connector that puts projected user embeddings, and a learned task prompt behind them, before the text.

    In this order the task's vectors can read the user's, whose keys and values are the same whatever the task.

    Args:
      language_model: of the model that reads the prompt.
      context_width: U, of the user embeddings.
    """

    def __init__(
        self, config: SoftPromptConfig, language_model: LanguageModelConfig, context_width: int, *, rngs: nnx.Rngs
    ):
        self.config, self.dtype = config, language_model.dtype
        width, param_dtype = language_model.width, language_model.param_dtype
        scale = LENGTH * language_model.embedding_scale / math.sqrt(width)
        self.projection_UD = parameter(
            rngs, fan_in(context_width, scale), (context_width, width), ("user", "embed"), param_dtype
        )
        if config.task_length:
            self.task_PD = parameter(rngs, normal(scale), (config.task_length, width), (None, "embed"), param_dtype)

    def context(self, embeddings: jax.Array, mask: jax.Array) -> Prefix:
        """Projects user embeddings [B, L, U] under bool `mask` [B, L] to vectors [B, L + task_length, D]."""
        vectors = linear(embeddings.astype(self.dtype), cast(self.projection_UD, self.dtype))
        if self.config.task_length:
            task = jnp.broadcast_to(cast(self.task_PD, self.dtype), (len(mask), *self.task_PD.shape))
            vectors = jnp.concatenate([vectors, task], axis=1)
            mask = jnp.pad(mask, ((0, 0), (0, self.config.task_length)), constant_values=True)
        return Prefix(vectors, mask)

    def __call__(
        self,
        language_model: LanguageModel,
        tokens: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        *,
        context: Prefix,
        cache: Cache | None,
        offset: int | jax.Array,
    ) -> tuple[jax.Array, Cache | None]:
        """As `LanguageModel.__call__`, of a text behind `context`.

        Positions, mask, offset and hidden states are the text's alone; a cache is one of this class' `init_cache`,
        which has read the prefix.
        """
        length = context.mask.shape[1]
        x = language_model.embed(tokens)
        positions = positions + context.lengths[:, None]
        before = jnp.broadcast_to(context.mask[:, None], (*mask.shape[:2], length))
        mask = jnp.concatenate([before, mask], axis=-1)
        if cache is not None:
            return language_model.read(x, positions, mask, cache=cache, offset=length + offset)
        hidden, _ = language_model.read(
            jnp.concatenate([context.vectors, x], axis=1),
            jnp.concatenate([context.positions, positions], axis=1),
            jnp.concatenate([_prefix_mask(context, tokens.shape[1]), mask], axis=1),
        )
        return hidden[:, length:], None

    def init_cache(self, language_model: LanguageModel, batch: int, length: int, context: Prefix) -> Cache:
        """A cache of `length` slots for text, behind those of the prefix, which is read here and never again."""
        empty = language_model.init_cache(batch, context.mask.shape[1] + length)
        _, cache = language_model.read(
            context.vectors, context.positions, _prefix_mask(context, length), cache=empty, offset=0
        )
        return typing.cast(Cache, cache)  # one came in


def _prefix_mask(prefix: Prefix, length: int) -> jax.Array:
    """bool [B, S, S + length]: the prefix sees itself causally, and nothing of the `length` slots behind it."""
    return jnp.pad(causal_mask(prefix.mask), ((0, 0), (0, 0), (0, length)))

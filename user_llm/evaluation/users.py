"""What models read of users: their events, or the embeddings that these became before and that are kept."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from user_llm.evaluation.scores import ItemScores, Scores
from user_llm.models.model import Model
from user_llm.models.user_llm import UserLLM
from user_llm.parallel.mesh import put_batch

Batch = Mapping[str, np.ndarray]

_FEATURES = ("item", "rating", "ago")  # of a history, the last where times are read
_KEPT = ("embeddings", "mask")  # of a user


def inputs_of(batch: Batch) -> dict[str, np.ndarray]:
    """What an LLM answers from. A shuffled source brings other users' events as the context."""
    prompt = {name: batch[name] for name in ("prompt_tokens", "prompt_lengths")}
    if "user/embeddings" in batch:
        return {**prompt, **{name: batch[f"user/{name}"] for name in _KEPT}}
    events = {
        name: batch.get(f"context/{name}", batch[f"history/{name}"]) for name in _FEATURES if f"history/{name}" in batch
    }
    return {**prompt, **events}


def context_of(model: UserLLM, batch: Mapping[str, jax.Array]):
    """What the LLM reads of the users of `inputs_of`."""
    if "embeddings" in batch:
        return model.context(batch["embeddings"], batch["mask"])
    return model.encode({name: batch[name] for name in _FEATURES if name in batch}, batch["item"] > 0)


def _history_of(batch: Batch, model: Model) -> dict[str, jax.Array]:
    history = {name: batch[f"history/{name}"] for name in _FEATURES if f"history/{name}" in batch}
    return put_batch(history, model.mesh)


@jax.jit
def _embeddings(model: Model, history: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    return cast(UserLLM, model.module()).embed(history, history["item"] > 0)


def user_embeddings(model: Model) -> Callable[[Batch], tuple[jax.Array, jax.Array]]:
    """What a contextualised LLM reads of users, before its connector: batch → float `[B, N, U]`, bool `[B, N]`."""
    return lambda batch: _embeddings(model, _history_of(batch, model))


@jax.jit
def _queries(model: Model, history: Mapping[str, jax.Array]) -> jax.Array:
    encoder: Any = model.module()
    return encoder.query(history, history["item"] > 0)


def encoder_queries(model: Model) -> Callable[[Batch], jax.Array]:
    """What users are looking for, as the encoder alone has it: batch → float `[B, Q]`."""
    return lambda batch: _queries(model, _history_of(batch, model))


@functools.partial(jax.jit, static_argnames="count")
def _query_logits(model: Model, query: jax.Array, first: np.int32, *, count: int) -> jax.Array:
    encoder: Any = model.module()
    if count >= encoder.num_answers:
        return encoder.query_logits(query)
    # Behind the last one, that again: no block has a shape of its own.
    return encoder.query_logits(query, jnp.minimum(first + jnp.arange(count), encoder.num_answers - 1))


def encoder_scores(model: Model) -> Scores:
    """The encoder alone, whichever it is, as a recommender of the items: float32 on the device.

    A dual encoder that has learnt categories scores these, C + 1 with the padding.
    """
    encoder: Any = model.module()
    width = encoder.num_answers

    def scores(batch: Batch) -> ItemScores:
        if "user/query" in batch:
            query = put_batch({"query": batch["user/query"]}, model.mesh)["query"]
        else:
            query = _queries(model, _history_of(batch, model))
        return ItemScores(width, lambda first, count: _query_logits(model, query, np.int32(first), count=count))

    return scores

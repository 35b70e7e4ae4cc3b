"""What models read of users: their events, or the embeddings that these became before and that are kept."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import numpy as np

from user_llm.evaluation.baselines import Scores
from user_llm.models.model import Model
from user_llm.models.user_llm import UserLLM
from user_llm.parallel.mesh import put_whole_batch

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
    return put_whole_batch(history, model.mesh)


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


@jax.jit
def _logits(model: Model, history: Mapping[str, jax.Array]) -> jax.Array:
    encoder: Any = model.module()
    return encoder.query_logits(encoder.query(history, history["item"] > 0))


@jax.jit
def _query_logits(model: Model, query: jax.Array) -> jax.Array:
    encoder: Any = model.module()
    return encoder.query_logits(query)


def encoder_scores(model: Model) -> Scores:
    """The encoder alone, whichever it is, as a recommender: `batch -> [B, I+1]`.

    A dual encoder that has learnt categories scores these, `[B, C+1]`.
    """

    def scores(batch: Batch) -> jax.Array:
        if "user/query" in batch:
            return _query_logits(model, put_whole_batch({"query": batch["user/query"]}, model.mesh)["query"])
        return _logits(model, _history_of(batch, model))

    return scores

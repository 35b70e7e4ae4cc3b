"""What a language model has computed of a text before any layer reads the user: once for all users, not once a step.

Below `UserLLM.first_layer` a state depends on the text alone. Where all users are asked the same, texts are few: the
prompt, and behind it the names that may be answered, whose common beginnings are one node of a `CatalogueTrie`.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.prefill import DecodingModel, Prompt, extend, prefill
from user_llm.decoding.tree_chunks import read_chunk, tree_chunks
from user_llm.models.attention import Cache, Context
from user_llm.models.language_model import LanguageModel, causal_mask
from user_llm.models.sharding import shard
from user_llm.models.user_llm import UserLLM


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TextStates:
    """The states that layer `first_layer` reads of a prompt that all users share, and of a trie's names behind it.

    Attributes:
        table: `[P + nodes, D]`: of the prompt's tokens, then of the nodes of `CatalogueTrie.tree`.
        prompt_length: P.
    """

    table: jax.Array
    prompt_length: int = dataclasses.field(metadata={"static": True})

    def prompt_rows(self, batch: int, length: int) -> jax.Array:
        """Rows int32 `[B, length]` of the prompt; a place behind its end, which nothing sees, has its last."""
        return jnp.broadcast_to(jnp.minimum(jnp.arange(length), self.prompt_length - 1), (batch, length))

    def node_rows(self, tree_nodes: jax.Array) -> jax.Array:
        """Rows of nodes of `CatalogueTrie.tree`, int32 of any shape."""
        return tree_nodes + self.prompt_length


@dataclasses.dataclass(frozen=True)
class UpperLayers:
    """The layers of `model` from its `first_layer` on, a `DecodingModel` whose tokens are rows of `states.table`."""

    model: UserLLM
    states: TextStates

    def __call__(self, tokens, positions, mask, *, context: Context | None, cache: Cache, offset):
        """As `UserLLM.__call__`, where `tokens` int32 `[B, T]` are rows of the table."""
        x = shard(jnp.take(self.states.table, tokens, axis=0), "batch", ...)
        return self.model.above(x, positions, mask, context=context, cache=cache, offset=offset)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 `[…, V]` of hidden states `[…, D]`."""
        return self.model.logits(hidden)

    def init_cache(self, batch: int, length: int, context: Context | None) -> Cache:
        """A cache of these layers alone."""
        del context
        return self.model.language_model.init_cache(batch, length, first=self.model.first_layer)


def reading(
    model: DecodingModel, prompt_tokens: jax.Array, states: TextStates | None
) -> tuple[DecodingModel, jax.Array]:
    """What reads prompts int32 `[B, P]`, and what it reads of them: rows of the `states` where there are such."""
    if states is None:
        return model, prompt_tokens
    return UpperLayers(cast(UserLLM, model), states), states.prompt_rows(*prompt_tokens.shape)


@dataclasses.dataclass(frozen=True)
class _LowerLayers:
    """The layers below `end`, a `DecodingModel` that reads texts alone and has no logits."""

    model: LanguageModel
    end: int

    def __call__(self, tokens, positions, mask, *, context: None, cache: Cache, offset):
        del context
        return self.model.lower(tokens, positions, mask, self.end, cache=cache, offset=offset)

    def logits(self, hidden: jax.Array) -> jax.Array:
        raise NotImplementedError

    def init_cache(self, batch: int, length: int, context: None) -> Cache:
        del context
        return self.model.init_cache(batch, length, end=self.end)


def read_texts(
    model: LanguageModel, prompt_tokens: np.ndarray, trie: CatalogueTrie, end: int, *, nodes_per_chunk: int = 256
) -> Iterator[jax.Array]:
    """The rows of `TextStates.table` in order, `[n, D]` at a time: of the prompt first, then of some nodes each.

    Args:
        prompt_tokens: int32 `[P]`, all of them the prompt's.
        end: the layer that reads the states.
        nodes_per_chunk: n at most; the last part has what is left.
    """
    tokens, nodes = jnp.asarray(prompt_tokens, jnp.int32)[None], len(trie.tree.token)
    free_slots = trie.tree.max_depth - 1 + nodes_per_chunk
    states, prompt = _read_prompt(model, tokens, end=end, free_slots=free_slots)
    yield states
    for start, chunk in zip(range(0, nodes, nodes_per_chunk), tree_chunks(trie.tree, nodes_per_chunk), strict=True):
        yield _read_nodes(model, prompt, trie, chunk, end=end)[-nodes_per_chunk:][: nodes - start]


@functools.partial(jax.jit, static_argnames=("end", "free_slots"))
def _read_prompt(model: LanguageModel, tokens: jax.Array, *, end: int, free_slots: int) -> tuple[jax.Array, Prompt]:
    length = tokens.shape[1]
    states, _ = model.lower(tokens, jnp.arange(length)[None], causal_mask(jnp.ones((1, length), bool)), end)
    return states[0], prefill(_LowerLayers(model, end), tokens, jnp.array([length]), None, free_slots=free_slots)


@functools.partial(jax.jit, static_argnames="end")
def _read_nodes(model: LanguageModel, prompt: Prompt, trie: CatalogueTrie, nodes: jax.Array, *, end: int) -> jax.Array:
    chunk = read_chunk(trie.tree, nodes)
    lower = _LowerLayers(model, end)
    states, _ = extend(lower, prompt, chunk.token[None], steps=chunk.step, sees=chunk.lineage[None], slot=0)
    return states[0]


def name_rows(trie: CatalogueTrie, prompt_length: int, length: int) -> np.ndarray:
    """Rows int32 `[I+1, length]` of `TextStates.table`: of the prompt, then of each item's title; 0 behind its end.

    A text of the prompt and a title, without EOS and as far as it fits, thus is `table[rows[item]]`.
    """
    tree = trie.tree
    parent, depth, last = (np.asarray(column) for column in (tree.parent, tree.depth, tree.last))
    rows = np.zeros((len(trie.title_of_item), length), np.int32)
    rows[:, :prompt_length] = np.arange(prompt_length)
    items = np.arange(1, len(rows))
    nodes = last[np.asarray(trie.title_of_item)[1:]]
    while len(items):
        fits = prompt_length + depth[nodes] <= length
        rows[items[fits], prompt_length + depth[nodes[fits]] - 1] = prompt_length + nodes[fits]
        nodes = parent[nodes]
        items, nodes = items[nodes >= 0], nodes[nodes >= 0]
    return rows

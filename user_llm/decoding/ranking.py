"""The exact log-probability of every title of a catalogue.

The trie is read as a tree behind the prompt: its nodes are the T axis, and a node attends to the prompt and
to its own ancestors, so that a prefix shared by many titles is computed once. Nodes go through the model in
chunks: a run of the preorder, and before it the ancestors of its first node (all others lie within the run).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from user_llm.decoding.catalogue_trie import CatalogueTrie, TitleTree
from user_llm.decoding.prefill import Context, DecodingModel, extend, prefill
from user_llm.models.attention import Cache


@functools.partial(jax.jit, static_argnames=("nodes_per_chunk",))
def rank_catalogue(
    model: DecodingModel[Context],
    prompt_tokens: jax.Array,
    prompt_lengths: jax.Array,
    context: Context | None,
    trie: CatalogueTrie,
    *,
    eos_id: int,
    nodes_per_chunk: int = 256,
) -> jax.Array:
    """log p(title, EOS | prompt, context) of every item.

    One program per shape of the prompts, whatever the number of chunks. Peak memory is that of the logits
    `[B, nodes_per_chunk + longest title, V]`.

    Args:
        prompt_tokens: int32 `[B, P]`, starting with BOS; prompt_lengths: int32 `[B]`, tokens in each row.
        context: what the model attends to besides the text (`UserLLM.encode`), or None.
        nodes_per_chunk: how many nodes of the trie one call of the model reads; memory against calls.

    Returns:
        float32 `[B, I+1]`; -inf for item 0. Items with equal title tokens have equal scores.

    Raises:
        ValueError: `nodes_per_chunk` below 1.
    """
    if nodes_per_chunk < 1:
        raise ValueError(f"nodes_per_chunk must be at least 1, got {nodes_per_chunk}")
    free_slots = trie.tree.max_depth - 1 + nodes_per_chunk
    prompt = prefill(model, prompt_tokens, prompt_lengths, context, free_slots=free_slots)
    batch = prompt_tokens.shape[0]

    def score_chunk(cache: Cache, nodes: jax.Array) -> tuple[Cache, jax.Array]:
        chunk = _read_chunk(trie.tree, nodes)
        hidden, cache = extend(
            model,
            prompt._replace(cache=cache),
            jnp.broadcast_to(chunk.token, (batch, len(nodes))),
            steps=chunk.step,
            sees=chunk.lineage[None],
            slot=0,
        )
        # The prompt's end stands before the chunk: it is the root's state.
        logits = model.logits(jnp.concatenate([prompt.hidden, hidden], axis=1))
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        edge = logits[:, chunk.parent, chunk.token] - normaliser[:, chunk.parent]
        prefix = jnp.sum(jnp.where(chunk.lineage, edge[:, None, :], 0.0), axis=-1)
        titles = prefix + logits[:, 1:, eos_id] - normaliser[:, 1:]
        return cache, titles[:, -nodes_per_chunk:]

    _, titles = jax.lax.scan(score_chunk, prompt.cache, _chunks(trie.tree, nodes_per_chunk))
    by_node = jnp.moveaxis(titles, 0, 1).reshape(batch, -1)
    scores = by_node[:, trie.tree.last[trie.title_of_item]]
    return scores.at[:, 0].set(-jnp.inf)


class _Chunk(NamedTuple):
    token: jax.Array  # [N]
    step: jax.Array  # [N]: tokens between the prompt's end and the node
    parent: jax.Array  # [N]: slot of the node's parent, counted behind the root at 0
    lineage: jax.Array  # [N, N]: the second is the first or one of its ancestors


def _chunks(tree: TitleTree, nodes_per_chunk: int) -> jax.Array:
    """int32 `[chunks, N]`: ancestors (padded with -1) and run of each chunk; the last run may end late."""
    starts = jnp.arange(0, len(tree.token), nodes_per_chunk)

    def climb(node: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        node = jnp.where(node < 0, -1, tree.parent[node])
        return node, node

    _, ancestors = jax.lax.scan(climb, starts, None, length=tree.max_depth - 1)
    return jnp.concatenate([ancestors.T, starts[:, None] + jnp.arange(nodes_per_chunk)], axis=1)


def _read_chunk(tree: TitleTree, nodes: jax.Array) -> _Chunk:
    real = (nodes >= 0) & (nodes < len(tree.token))
    known = jnp.where(real, nodes, 0)
    ancestor = real & (nodes <= nodes[:, None]) & (nodes[:, None] < tree.end[known])
    slots = jnp.concatenate([jnp.array([-1]), nodes])
    return _Chunk(
        token=tree.token[known],
        step=tree.depth[known] - 1,
        parent=jnp.argmax(slots == tree.parent[known][:, None], axis=1),
        lineage=ancestor | jnp.eye(len(nodes), dtype=bool),
    )

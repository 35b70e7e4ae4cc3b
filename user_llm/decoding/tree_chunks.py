"""A tree of titles in pieces that a language model can read: the nodes of a piece are the T axis of its call.

A node attends to the prompt and to its own ancestors. A chunk is a run of the preorder, and before it the ancestors of
its first node (all others lie within the run).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from user_llm.decoding.catalogue_trie import TitleTree


class Chunk(NamedTuple):
    """N slots, some of which may hold no node: what stands there then sees itself alone, and nobody sees it."""

    node: jax.Array  # [N]
    token: jax.Array  # [N]
    step: jax.Array  # [N]: tokens between the prompt's end and the node
    parent: jax.Array  # [N]: slot of the node's parent, counted behind the root at 0
    lineage: jax.Array  # [N, N]: the second is the first or one of its ancestors


def tree_chunks(tree: TitleTree, nodes_per_chunk: int) -> jax.Array:
    """int32 `[chunks, N]`: ancestors (padded with -1) and run of each chunk; the last run may end late."""
    starts = jnp.arange(0, len(tree.token), nodes_per_chunk)

    def climb(node: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        node = jnp.where(node < 0, -1, tree.parent[node])
        return node, node

    _, ancestors = jax.lax.scan(climb, starts, None, length=tree.max_depth - 1)
    return jnp.concatenate([ancestors.T, starts[:, None] + jnp.arange(nodes_per_chunk)], axis=1)


def read_chunk(tree: TitleTree, nodes: jax.Array) -> Chunk:
    """What a model is told of the `nodes` int32 `[N]` of a chunk."""
    real = (nodes >= 0) & (nodes < len(tree.token))
    known = jnp.where(real, nodes, 0)
    ancestor = real & (nodes <= nodes[:, None]) & (nodes[:, None] < tree.end[known])
    slots = jnp.concatenate([jnp.array([-1]), nodes])
    return Chunk(
        node=known,
        token=tree.token[known],
        step=tree.depth[known] - 1,
        parent=jnp.argmax(slots == tree.parent[known][:, None], axis=1),
        lineage=ancestor | jnp.eye(len(nodes), dtype=bool),
    )

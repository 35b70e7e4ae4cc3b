"""Where some titles of a row lie in the trie, and which candidates of its beams lie on the way to them.

A row has few titles that matter (those that are no answer, those a recommender likes best), a catalogue may have
millions: what is held here grows with the former alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from user_llm.decoding.catalogue_trie import CatalogueTrie


def paths_to(trie: CatalogueTrie, titles: jax.Array) -> jax.Array:
    """The nodes on the way to titles int32 `[B, E]`, by depth from 1 on: int32 `[T, B, E]`.

    -1 deeper than a title's leaf, and for titles that are none (`trie.num_titles`).
    """

    def step(nodes: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        reached = nodes >= start  # breadth first: the nodes of a depth stand behind all above
        return jnp.where(reached, trie.parent[nodes], nodes), jnp.where(reached, nodes, -1)

    real = titles < trie.num_titles
    leaves = jnp.where(real, trie.leaf_of_title[jnp.where(real, titles, 0)], 0)
    starts = jnp.array(trie.level_ends[:-1], jnp.int32)  # of depth 1, 2, …
    return jax.lax.scan(step, leaves, starts, reverse=True)[1]


def nodes_above(trie: CatalogueTrie, titles: jax.Array) -> jax.Array:
    """The node above each token of titles int32 `[B]`, EOS included, the root first: int32 `[B, T]`, -1 behind EOS."""
    below = paths_to(trie, titles[:, None])[:, :, 0].T
    return jnp.where(below >= 0, jnp.pad(below[:, :-1], ((0, 0), (1, 0))), -1)


def places_among(
    trie: CatalogueTrie, paths: jax.Array, depth: jax.Array | int, nodes: jax.Array, width: int
) -> jax.Array:
    """Which candidate lies on each path: int32 `[B, E]`, its place among `[K * C]`; K * C where none does.

    Args:
        paths: int32 `[T, B, E]`.
        depth: of the candidates, from 1.
        nodes: int32 `[B, K]`, whose children are the candidates; of equal ones the first counts.
        width: C.
    """
    here = jax.lax.dynamic_index_in_dim(paths, depth - 1, keepdims=False)
    parents = trie.parent[jnp.maximum(here, 0)]
    under = (parents[:, None, :] == nodes[:, :, None]) & (here >= 0)[:, None, :]
    place = jnp.argmax(under, axis=1) * width + here - trie.first_child[jnp.maximum(parents, 0)]
    return jnp.where(under.any(axis=1), place, nodes.shape[1] * width)


class Excluded(NamedTuple):
    """Items that are no answer for a row.

    Attributes:
        titles: int32 `[B, E]`, the title of each, ascending; `num_titles` where there is none.
        paths: int32 `[T, B, E]`, `paths_to` the titles.
        closed: the same for the nodes below which nothing is open, each once; -1 for all others.
    """

    titles: jax.Array
    paths: jax.Array
    closed: jax.Array

    @classmethod
    def build(cls, trie: CatalogueTrie, items: jax.Array) -> "Excluded":
        """Of items int32 `[B, E]`, 0-padded, in any order, with repetitions."""
        items = jnp.sort(items, axis=1)
        once = jnp.diff(items, axis=1, prepend=0) > 0  # an item named twice is one item; padding is none
        once &= trie.group_size[items] > 0
        titles = jnp.sort(jnp.where(once, trie.title_of_item[items], trie.num_titles), axis=1)
        paths = paths_to(trie, titles)
        # Titles stand in order, so those below a node stand side by side.
        items_under = trie.items_before[trie.end_title[paths]] - trie.items_before[trie.first_title[paths]]
        first, count = _runs(paths)
        return cls(titles, paths, jnp.where((paths >= 0) & first & (count == items_under), paths, -1))

    def is_closed(self, trie: CatalogueTrie, depth: jax.Array, nodes: jax.Array, width: int) -> jax.Array:
        """Of candidates: bool `[B, K, C]`; the arguments are those of `places_among`."""
        places = places_among(trie, self.closed, depth, nodes, width)
        row = jnp.arange(len(nodes))[:, None]
        closed = jnp.zeros((len(nodes), nodes.shape[1] * width), bool).at[row, places].set(True, mode="drop")
        return closed.reshape(*nodes.shape, width)


def _runs(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of equal values side by side on the last axis: which is the first, and how many there are, at each of them."""
    length = values.shape[-1]
    index = jnp.broadcast_to(jnp.arange(length), values.shape)
    first = jnp.concatenate([jnp.ones_like(values[..., :1], bool), values[..., 1:] != values[..., :-1]], axis=-1)
    start = jax.lax.cummax(jnp.where(first, index, 0), axis=values.ndim - 1)
    last = jnp.concatenate([first[..., 1:], jnp.ones_like(first[..., :1])], axis=-1)
    end = jax.lax.cummin(jnp.where(last, index, length), axis=values.ndim - 1, reverse=True)
    return first, end - start + 1

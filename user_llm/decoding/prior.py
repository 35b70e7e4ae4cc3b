"""What else is known of a user's next item, as a second opinion on every node of the trie.

A node's mass is that of the items below it: what a recommender gives their titles together. Beams that know it do not
leave a prefix whose one good title the language model has yet to spell.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.paths import Excluded, paths_to, places_among
from user_llm.decoding.segments import segment_logsumexp

MOST_DENSE = 100_000  # items up to which the mass of every node is computed
TOP = 4096  # items that are told apart where there are more

_TINY = 1e-37  # of a user's likeliest item: nothing that is open sums up to 0


def open_log_prior(logits: jax.Array, excluded_items: jax.Array, untrained: jax.Array, floor: jax.Array) -> jax.Array:
    """A recommender's logits as log-probabilities over the items that are open for each user.

    Args:
        logits: float32 `[B, I+1]`.
        excluded_items: int32 `[B, E]`, 0-padded.
        untrained: bool `[I+1]`, items of which the recommender has learnt nothing: they share `floor` equally.
        floor: what an untrained item is asked for with, 0 to 1; without untrained items that are open it is 0.

    Returns:
        float32 `[B, I+1]`; -inf for item 0 and what is excluded.
    """
    rows = jnp.arange(len(logits))[:, None]
    is_open = jnp.ones(logits.shape, bool).at[:, 0].set(False).at[rows, excluded_items].set(False)
    new = is_open & untrained
    known = jax.nn.log_softmax(jnp.where(is_open & ~untrained, logits, -jnp.inf), axis=-1)
    count = new.sum(axis=-1, keepdims=True)
    share = jnp.where(count > 0, floor, 0.0)
    known = jnp.where(is_open & ~untrained, known + jnp.log1p(-share), -jnp.inf)
    return jnp.where(new, jnp.log(share) - jnp.log(jnp.maximum(count, 1)), known)


class DensePrior(NamedTuple):
    """The mass of every node, for catalogues up to `MOST_DENSE`.

    Attributes:
        masses: float32 `[nodes, B]`, logarithms; -inf where nothing is open.
    """

    masses: jax.Array

    @classmethod
    def build(cls, trie: CatalogueTrie, log_prior: jax.Array) -> "DensePrior":
        """Of log-probabilities float32 `[B, I+1]`. A leaf is exact, whatever else its user may like better.

        Levels are summed as probabilities, from below: no sum of a few small numbers passes through a large one.
        """
        leaves = title_masses(trie, log_prior)
        highest = jnp.max(leaves, axis=0)
        below = jnp.where(leaves > -jnp.inf, jnp.maximum(jnp.exp(leaves - highest), _TINY), 0.0)
        levels: list[jax.Array] = []
        sums = jnp.zeros((0, leaves.shape[1]))  # of the level below
        starts = (0, *trie.level_ends)
        for depth in reversed(range(len(trie.level_ends))):
            here = slice(starts[depth], starts[depth + 1])
            if depth + 1 < len(trie.level_ends):
                children = slice(starts[depth + 1], starts[depth + 2])
                size, parents = starts[depth + 1] - starts[depth], trie.parent[children] - starts[depth]
                sums = jax.ops.segment_sum(sums, parents, size, indices_are_sorted=True)
            else:
                sums = jnp.zeros((starts[depth + 1] - starts[depth], leaves.shape[1]))
            is_leaf, title = (trie.leaf_item[here] > 0)[:, None], trie.first_title[here]
            sums = jnp.where(is_leaf, below[title], sums)
            levels.append(jnp.where(is_leaf, leaves[title], jnp.log(sums) + highest))
        return cls(jnp.concatenate(levels[::-1]))

    def log_mass(self, trie: CatalogueTrie, depth: jax.Array, nodes: jax.Array, children: jax.Array) -> jax.Array:
        """Of the candidates `[B, K, C]`, which are children of `nodes` `[B, K]` at `depth`: float32 `[B, K, C]`."""
        del trie, depth, nodes
        return self.masses[children, jnp.arange(children.shape[0])[:, None, None]]


class TopPrior(NamedTuple):
    """The mass of a user's likeliest items, in memory that no catalogue makes larger; the others share what is left.

    Attributes:
        shares: float32 `[B, M]`, of the likeliest items, as a part of the first's.
        paths: int32 `[T, B, M]`, `paths_to` their titles.
        highest: float32 `[B]`, the logarithm of the first's.
        rest: float32 `[B]`, the share of every other item that is open.
        excluded: items that are not.
    """

    shares: jax.Array
    paths: jax.Array
    highest: jax.Array
    rest: jax.Array
    excluded: Excluded

    @classmethod
    def build(cls, trie: CatalogueTrie, log_prior: jax.Array, excluded: jax.Array, top: int = TOP) -> "TopPrior":
        """Of log-probabilities float32 `[B, I+1]`; `excluded`, int32 `[B, E]`, are those of no answer.

        Where more items than these are at -inf, the likeliest are all that is left open.
        """
        batch = jnp.arange(len(log_prior))[:, None]
        values, items = jax.lax.top_k(log_prior, min(top, log_prior.shape[1] - 1))
        highest = values.max(axis=1)  # a slice of `values` would make XLA sort the catalogue: 60 times as long
        others = log_prior.at[batch, items].set(-jnp.inf)
        count = (others > -jnp.inf).sum(axis=1)
        rest = jnp.exp(jax.nn.logsumexp(others, axis=1) - highest) / jnp.maximum(count, 1)
        shares = jnp.where(values > -jnp.inf, jnp.maximum(jnp.exp(values - highest[:, None]), _TINY), 0.0)
        titles = jnp.where(values > -jnp.inf, trie.title_of_item[items], trie.num_titles)
        closed = Excluded.build(trie, excluded)
        are_open = (log_prior[:, 1:] > -jnp.inf).sum(axis=1)
        counted = are_open == trie.items_before[-1] - (closed.titles < trie.num_titles).sum(axis=1)
        rest = jnp.where((count > 0) & counted, jnp.maximum(rest, _TINY), 0.0)
        return cls(shares, paths_to(trie, titles), highest, rest, closed)

    def log_mass(self, trie: CatalogueTrie, depth: jax.Array, nodes: jax.Array, children: jax.Array) -> jax.Array:
        """See `DensePrior`."""
        batch, beams, width = children.shape
        row = jnp.arange(batch)[:, None]

        def sums(paths: jax.Array, values: jax.Array) -> jax.Array:
            places = places_among(trie, paths, depth, nodes, width)
            return jnp.zeros((batch, beams * width), values.dtype).at[row, places].add(values, mode="drop")

        shares = sums(self.paths, self.shares)
        told_apart = sums(self.paths, (self.shares > 0).astype(jnp.int32))
        told_apart += sums(self.excluded.paths, jnp.ones(self.excluded.titles.shape, jnp.int32))
        under = trie.items_before[trie.end_title[children]] - trie.items_before[trie.first_title[children]]
        others = under.reshape(batch, -1) - told_apart
        masses = jnp.log(shares + others * self.rest[:, None]) + self.highest[:, None]
        return masses.reshape(children.shape)


def build_prior(trie: CatalogueTrie, log_prior: jax.Array, excluded: jax.Array) -> DensePrior | TopPrior:
    """Of log-probabilities float32 `[B, I+1]`: exact, or beyond `MOST_DENSE` items of the likeliest `TOP`.

    `excluded`, int32 `[B, E]`, are those that are no answer.
    """
    log_prior = of_items_left(trie, log_prior)
    if log_prior.shape[1] <= MOST_DENSE:
        return DensePrior.build(trie, log_prior)
    return TopPrior.build(trie, log_prior, excluded)


def of_items_left(trie: CatalogueTrie, log_prior: jax.Array) -> jax.Array:
    """Log-probabilities float32 `[B, I+1]` over the items that the trie has left (`CatalogueTrie.only`).

    Of items that `log_prior` does not know there is none: a trie may have room for more.
    """
    unknown = len(trie.title_of_item) - log_prior.shape[1]
    log_prior = jnp.pad(log_prior, ((0, 0), (0, unknown)), constant_values=-jnp.inf)
    if trie.open_nodes is None:
        return log_prior
    left = jnp.where(trie.group_size > 0, log_prior, -jnp.inf)
    mass = jax.nn.logsumexp(left, axis=-1, keepdims=True)
    return left - jnp.where(mass > -jnp.inf, mass, 0.0)


def title_masses(trie: CatalogueTrie, log_prior: jax.Array) -> jax.Array:
    """What items of equal titles have together: logarithms float32 `[R, B]`, -inf where none is open."""
    return segment_logsumexp(log_prior[:, 1:].T, trie.title_of_item[1:], trie.num_titles)

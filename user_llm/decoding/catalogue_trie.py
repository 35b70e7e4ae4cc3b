"""The titles of a catalogue as one prefix tree, in flat arrays that live on the device."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from user_llm.decoding.trie_building import Capacity, Titles, build_columns, item_columns, sorted_titles
from user_llm.errors import UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TitleTree:
    """The nodes that a language model reads (no root, no EOS), in preorder. Shapes `[nodes]`, all int32.

    A node's ancestors stand before it, its descendants directly behind it up to `end`.
    """

    token: jax.Array
    parent: jax.Array  # -1: the root
    depth: jax.Array  # tokens from the root: 1 for a title's first
    end: jax.Array  # one past the node's last descendant
    last: jax.Array  # [R]: the node on which each title ends
    max_depth: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CatalogueTrie:
    """Prefix tree over `title + EOS`; node 0 is the root, and a leaf is the EOS of one title.

    Titles of equal tokens share a leaf, which stands for the lowest of their item ids; `group_size` tells how
    many items hide behind one title, so that a metric can count such ties against the model.

    Attributes:
        token: int32 `[nodes]`, the token that leads to a node.
        first_child, num_children: int32 `[nodes]`: a node's children are nodes
            `first_child … first_child + num_children`, in order of token, the EOS leaf (if any) first.
        first_title, end_title: int32 `[nodes]`: titles `first_title … end_title` lie under a node.
        parent: int32 `[nodes]`; -1: the root has none.
        leaf_item: int32 `[nodes]`, the item of a leaf; 0 on every other node, and where no item is left (`only`).
        leaf_of_title: int32 `[R]`, the leaf on which each title ends.
        tree_node: int32 `[nodes]`, the same node in `tree`; -1 for the root and the leaves.
        items_before: int32 `[R+1]`, items of the first r titles that are left.
        title_of_item: int32 `[I+1]`, the row of an item's title among the sorted titles; -1 for item 0.
        canonical_item: int32 `[I+1]`, the lowest item left with the same title tokens; 0 for item 0, and for none.
        group_size: int32 `[I+1]`, the number of items left with these title tokens; 0 for item 0, and what is not left.
        next_twin: int32 `[I+1]`, the next higher item left with the same title tokens; 0 behind the last.
        tree: the same tree as a language model reads it, for `rank_catalogue`.
        fan_out: most children of a node at depth 0, 1, …; its length is the longest title with its EOS.
        level_ends: one past the last node at depth 0, 1, …; nodes of one depth stand side by side.
        open_nodes: bool `[nodes]`, those below which an item is left; None: all.
    """

    token: jax.Array
    first_child: jax.Array
    num_children: jax.Array
    first_title: jax.Array
    end_title: jax.Array
    parent: jax.Array
    leaf_item: jax.Array
    leaf_of_title: jax.Array
    items_before: jax.Array
    tree_node: jax.Array
    title_of_item: jax.Array
    canonical_item: jax.Array
    group_size: jax.Array
    next_twin: jax.Array
    tree: TitleTree
    fan_out: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    level_ends: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    open_nodes: jax.Array | None = None

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays by name, those of `tree` behind "tree/"."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "tree"}
        tree = {f"tree/{field.name}": getattr(self.tree, field.name) for field in dataclasses.fields(self.tree)}
        return {name: np.asarray(column) for name, column in {**own, **tree}.items() if isinstance(column, jax.Array)}

    @classmethod
    def of_columns(
        cls, columns: Mapping[str, Any], fan_out: tuple[int, ...], level_ends: tuple[int, ...]
    ) -> "CatalogueTrie":
        """A trie of its `columns`, arrays of JAX."""
        tree = {name.removeprefix("tree/"): column for name, column in columns.items() if name.startswith("tree/")}
        own = {name: column for name, column in columns.items() if "/" not in name}
        title_tree = TitleTree(**tree, max_depth=len(fan_out) - 1)
        return cls(**own, tree=title_tree, fan_out=fan_out, level_ends=level_ends)

    @property
    def num_titles(self) -> int:
        return self.tree.last.shape[0]

    def is_told(self, nodes: jax.Array) -> jax.Array:
        """Whether one title alone lies under nodes int32 `[…]`, what is left of items or not: bool `[…]`."""
        return self.end_title[nodes] - self.first_title[nodes] == 1

    def telling_tokens(self) -> np.ndarray:
        """How many tokens of an item's title, EOS included, tell it from all others: int32 `[I+1]`, 0 for item 0."""
        parent, many = np.asarray(self.parent), np.asarray(self.end_title) - np.asarray(self.first_title) > 1
        nodes = parent[np.asarray(self.leaf_of_title)]
        tokens = np.zeros(self.num_titles, np.int32)
        for _ in self.fan_out:  # each token that is read where several titles may still come
            tokens += many[nodes] & (nodes >= 0)
            nodes = np.where(nodes >= 0, parent[nodes], -1)
        tokens = np.maximum(tokens, 1)  # of the only title there is
        return np.append(tokens, np.int32(0))[np.asarray(self.title_of_item)]

    def children(self, nodes: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
        """The first `width` children of nodes int32 `[…]`: int32 `[…, width]`, and which of them are open, bool."""
        children = jnp.minimum(self.first_child[nodes][..., None] + jnp.arange(width), len(self.token) - 1)
        real = self.are_children(nodes, width)
        return children, real if self.open_nodes is None else real & self.open_nodes[children]

    def are_children(self, nodes: jax.Array, width: int) -> jax.Array:
        """Which of `children` there are, open or not: bool `[…, width]`."""
        return jnp.arange(width) < self.num_children[nodes][..., None]

    def only(self, items: np.ndarray) -> "CatalogueTrie":
        """The same tree with some of its items left; nodes without any are closed.

        No node moves: what was computed of them (`TextStates`) stays theirs.

        Args:
            items: bool `[I+1]`.

        Raises:
            UserError: none is left.
        """
        left = np.array(items, bool)
        left[0] = False
        if not left.any():
            raise UserError("no item is left that may be answered")
        titles = np.asarray(self.title_of_item)
        columns, known = item_columns(titles, self.num_titles, left), titles >= 0
        before, first, end = columns["items_before"], np.asarray(self.first_title), np.asarray(self.end_title)
        leaf_item = np.zeros(len(first), np.int32)
        leaf_item[np.asarray(self.leaf_of_title)[titles[known]]] = columns["canonical_item"][known]
        changed: dict[str, Any] = {name: _int32(column) for name, column in columns.items()}
        changed |= {"leaf_item": _int32(leaf_item), "open_nodes": jnp.asarray(before[end] > before[first])}
        return dataclasses.replace(self, **changed)

    @jax.jit
    def open_items(self, items: jax.Array, excluded_items: jax.Array) -> jax.Array:
        """The lowest item of each title that is not excluded: int32 `[B, J]`, 0 where none is left.

        Args:
            items: int32 `[B, J]`, any item of each title, or 0.
            excluded_items: int32 `[B, E]`, 0-padded.
        """

        def closed(items: jax.Array) -> jax.Array:
            return (items[:, :, None] == excluded_items[:, None, :]).any(axis=2) & (items > 0)

        return jax.lax.while_loop(
            lambda items: closed(items).any(),
            lambda items: jnp.where(closed(items), self.next_twin[items], items),
            self.canonical_item[items],
        )

    @classmethod
    def build(cls, title_tokens: np.ndarray, lengths: np.ndarray, eos_id: int) -> "CatalogueTrie":
        """Builds the trie.

        Args:
            title_tokens: int `[I+1, T]`, row i the tokens of item i's title without EOS; what stands behind its
                length is not read. Row 0 is padding and is not read.
            lengths: int `[I+1]`, tokens in each title.
            eos_id: the token that closes a title.

        Raises:
            UserError: no items, or a title that is empty, longer than the table, or holds EOS; see `build_columns`.
        """
        title_tokens, lengths = np.asarray(title_tokens), np.asarray(lengths)
        check_titles(title_tokens, lengths, eos_id)
        titles = sorted_titles(title_tokens, lengths)
        return cls.of_titles(titles, eos_id, Capacity.of(titles))

    @classmethod
    def of_titles(cls, titles: Titles, eos_id: int, capacity: Capacity) -> "CatalogueTrie":
        """Of titles in order, in arrays of some capacity, which holds them."""
        built = build_columns(titles, eos_id, capacity)
        return cls(
            **_moved(built.nodes),
            **_moved(built.items),
            tree=TitleTree(**_moved(built.tree), max_depth=len(capacity.fan_out) - 1),
            fan_out=capacity.fan_out,
            level_ends=capacity.level_ends,
        )


def _moved(columns: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Onto the device one by one, each forgotten here: ten million titles take gigabytes."""
    return {name: jax.block_until_ready(_int32(columns.pop(name))) for name in list(columns)}


def _int32(column: np.ndarray) -> jax.Array:
    """Converted by NumPy: on the device it would be a program for each shape, each compiled at a start."""
    return jnp.asarray(np.asarray(column, np.int32))


def check_titles(title_tokens: np.ndarray, lengths: np.ndarray, eos_id: int) -> None:
    """Raises UserError as `CatalogueTrie.build` does."""
    if title_tokens.ndim != 2 or lengths.shape != title_tokens.shape[:1] or len(title_tokens) < 2:
        raise UserError(
            "titles must be tokens [items + 1, length] with lengths [items + 1] and at least one item, "
            f"got shapes {title_tokens.shape} and {lengths.shape}"
        )
    inside = np.arange(title_tokens.shape[1]) < lengths[:, None]
    for wrong, what, fix in (
        (lengths < 1, "is empty", "give every item a title"),
        (lengths > title_tokens.shape[1], "is longer than the table", "widen the table or cut the title"),
        ((inside & (title_tokens == eos_id)).any(axis=1), f"holds EOS ({eos_id})", "leave EOS to the trie"),
    ):
        items = np.flatnonzero(wrong[1:]) + 1
        if items.size:
            raise UserError(f"the title of item {items[0]} {what} ({items.size} such items): {fix}")

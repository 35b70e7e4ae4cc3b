"""The titles of a catalogue as one prefix tree, in flat arrays that live on the device.

Both numberings below fall out of the lexicographically sorted table of titles (EOS sorts before every token).
Row r of that table brings as new nodes what it does not share with row r - 1. Read row by row those nodes are
in preorder; read column by column they are in breadth-first order, where the children of a node stand side by
side.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

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
        leaf_item: int32 `[nodes]`, the item of a leaf; 0 on every other node.
        leaf_of_title: int32 `[R]`, the leaf on which each title ends.
        tree_node: int32 `[nodes]`, the same node in `tree`; -1 for the root and the leaves.
        items_before: int32 `[R+1]`, items of the first r titles.
        title_of_item: int32 `[I+1]`, the row of an item's title among the sorted titles; -1 for item 0.
        canonical_item: int32 `[I+1]`, the lowest item with the same title tokens; 0 for item 0.
        group_size: int32 `[I+1]`, the number of items with these title tokens; 0 for item 0.
        next_twin: int32 `[I+1]`, the next higher item with the same title tokens; 0 behind the last, and for item 0.
        tree: the same tree as a language model reads it, for `rank_catalogue`.
        fan_out: most children of a node at depth 0, 1, …; its length is the longest title with its EOS.
        level_ends: one past the last node at depth 0, 1, …; nodes of one depth stand side by side.
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

    @property
    def num_titles(self) -> int:
        return self.tree.last.shape[0]

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
            UserError: no items, or a title that is empty, longer than the table, or holds EOS.
        """
        title_tokens, lengths = np.asarray(title_tokens), np.asarray(lengths)
        _check_titles(title_tokens, lengths, eos_id)
        table, lengths, title_of_item, canonical = _distinct_titles(title_tokens, lengths)
        shared = np.zeros(len(table), np.int64)  # tokens in common with the row before
        shared[1:] = np.cumprod(table[1:] == table[:-1], axis=1).sum(axis=1)
        depth = np.arange(1, table.shape[1] + 1)  # column d - 1 holds the nodes of depth d
        leaf = depth == lengths[:, None] + 1
        new = (depth > shared[:, None]) & (depth <= lengths[:, None] + 1)
        end_title = _next_row_apart(depth > shared[:, None])

        group_size = np.bincount(title_of_item[1:], minlength=len(table))[title_of_item]
        group_size[0] = 0
        nodes = _breadth_first(np.where(leaf, eos_id, table), new, leaf, end_title, canonical)
        return cls(
            **{name: _int32(column) for name, column in nodes.items()},
            leaf_of_title=_int32(_leaves(nodes)),
            items_before=_int32(np.concatenate([[0], np.cumsum(np.bincount(title_of_item[1:], minlength=len(table)))])),
            title_of_item=_int32(title_of_item),
            canonical_item=_int32(np.concatenate([[0], canonical[title_of_item[1:]]])),
            group_size=_int32(group_size),
            next_twin=_int32(_next_twins(title_of_item)),
            tree=_title_tree(table, new & ~leaf, end_title, lengths),
            fan_out=_fan_out(nodes["num_children"], new),
            level_ends=(1, *(1 + np.cumsum(new.sum(axis=0))).tolist()),
        )


def _int32(column: np.ndarray) -> jax.Array:
    """Converted by NumPy: on the device it would be a program for each shape, each compiled at a start."""
    return jnp.asarray(np.asarray(column, np.int32))


def _check_titles(title_tokens: np.ndarray, lengths: np.ndarray, eos_id: int) -> None:
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


def _distinct_titles(title_tokens: np.ndarray, lengths: np.ndarray):
    """Sorted distinct titles `[R, longest + 1]`, their lengths, each item's row, each row's lowest item."""
    longest = lengths[1:].max()
    table = np.where(np.arange(longest) < lengths[:, None], title_tokens[:, :longest], -1)  # before every token
    table = np.pad(table, ((0, 0), (0, 1)), constant_values=-1)  # room for the EOS of the longest
    order = np.lexsort(table[1:].T[::-1]) + 1  # stable: equal titles stay in order of item id
    starts = np.ones(len(order), bool)
    starts[1:] = (table[order[1:]] != table[order[:-1]]).any(axis=1)
    title_of_item = np.full(len(table), -1)
    title_of_item[order] = np.cumsum(starts) - 1
    canonical = order[starts]
    return table[canonical], lengths[canonical], title_of_item, canonical


def _next_twins(title_of_item: np.ndarray) -> np.ndarray:
    order = np.argsort(title_of_item, kind="stable")  # twins side by side, the lowest item first
    twins = title_of_item[order[1:]] == title_of_item[order[:-1]]
    following = np.zeros(len(order), int)
    following[order[:-1]] = np.where(twins, order[1:], 0)
    return following


def _next_row_apart(apart: np.ndarray) -> np.ndarray:
    """`[r, d]`: the first row behind r that does not share row r's prefix of that depth."""
    rows = np.where(apart, np.arange(len(apart))[:, None], len(apart))
    following = np.concatenate([rows[1:], np.full((1, apart.shape[1]), len(apart))])
    return np.minimum.accumulate(following[::-1], axis=0)[::-1]


def _number(new: np.ndarray, order: Literal["C", "F"]) -> np.ndarray:
    """Consecutive ids for the new nodes: by row (`C`, preorder) or by column (`F`, breadth first)."""
    flat = new.ravel(order)
    return (np.cumsum(flat) - 1).reshape(new.shape, order=order)


def _on_path(ids: np.ndarray, new: np.ndarray) -> np.ndarray:
    """`[r, d]`: the node of that depth on row r's path (ids rise with r, so the latest one so far)."""
    return np.maximum.accumulate(np.where(new, ids, -1), axis=0)


def _breadth_first(tokens, new, leaf, end_title, canonical) -> dict[str, np.ndarray]:
    ids = _number(new, "F") + 1  # behind the root
    rows = np.broadcast_to(np.arange(len(new))[:, None], new.shape)
    parents = np.concatenate([np.zeros((len(new), 1), int), _on_path(ids, new)[:, :-1]], axis=1)

    def column(values: np.ndarray, root: int) -> np.ndarray:
        return np.concatenate([[root], values.ravel("F")[new.ravel("F")]])

    parent = column(parents, -1)
    num_children = np.bincount(parent[1:], minlength=len(parent))
    return {
        "token": column(tokens, 0),
        "parent": parent,
        "num_children": num_children,
        "first_child": np.cumsum(num_children) - num_children + 1,
        "first_title": column(rows, 0),
        "end_title": column(end_title, len(new)),
        "leaf_item": column(np.where(leaf, canonical[:, None], 0), 0),
        "tree_node": column(np.where(leaf, -1, _number(new & ~leaf, "C")), -1),
    }


def _leaves(nodes: dict[str, np.ndarray]) -> np.ndarray:
    """The leaf of each title."""
    leaves = np.flatnonzero(nodes["leaf_item"])
    return leaves[np.argsort(nodes["first_title"][leaves])]


def _fan_out(num_children: np.ndarray, new: np.ndarray) -> tuple[int, ...]:
    nodes = new.sum(axis=0)  # at depth 1, 2, …; the deepest are leaves and have no children
    level_starts = np.concatenate([[0, 1], 1 + np.cumsum(nodes[:-2])])[: len(nodes)]
    return tuple(int(width) for width in np.maximum.reduceat(num_children, level_starts))


def _title_tree(table, new, end_title, lengths) -> TitleTree:
    ids = _number(new, "C")
    on_path = _on_path(ids, new)
    parents = np.concatenate([np.full((len(new), 1), -1), on_path[:, :-1]], axis=1)
    before_row = np.concatenate([[0], np.cumsum(new.sum(axis=1))])  # nodes that earlier rows brought
    depths = np.broadcast_to(np.arange(1, new.shape[1] + 1), new.shape)
    columns = (table, parents, depths, before_row[end_title])
    token, parent, depth, end = (_int32(column[new]) for column in columns)
    return TitleTree(
        token,
        parent,
        depth,
        end,
        last=_int32(on_path[np.arange(len(new)), lengths - 1]),
        max_depth=int(lengths.max()),
    )

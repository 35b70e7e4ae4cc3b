"""The arrays of a `CatalogueTrie`, level by level in NumPy, whatever the number of titles.

Sorted titles (EOS sorts before every token) number the nodes by themselves. What title r does not share with title
r - 1 are new nodes: read title by title they are in preorder, read level by level in breadth-first order, where the
children of a node stand side by side.
"""

from typing import NamedTuple

import numpy as np

Columns = dict[str, np.ndarray]


class _Titles(NamedTuple):
    """Distinct titles in order.

    Attributes:
        table: int32 `[R, longest]`, right-padded with -1.
        lengths: int32 `[R]`.
        shared: int32 `[R]`, tokens in common with the title before.
        title_of_item: int32 `[I+1]`, -1 for item 0.
        canonical: int32 `[R]`, the lowest item of each.
    """

    table: np.ndarray
    lengths: np.ndarray
    shared: np.ndarray
    title_of_item: np.ndarray
    canonical: np.ndarray


class Built(NamedTuple):
    """Columns of the nodes breadth first, of items and titles, of the nodes in preorder; and where levels end."""

    nodes: Columns
    items: Columns
    tree: Columns
    longest: int
    fan_out: tuple[int, ...]
    level_ends: tuple[int, ...]


def build_columns(title_tokens: np.ndarray, lengths: np.ndarray, eos_id: int) -> Built:
    """Of titles int `[I+1, T]` and their lengths `[I+1]`, as `CatalogueTrie.build` takes them."""
    titles = _distinct(title_tokens, lengths)
    level_ends = _level_ends(titles)
    nodes, tree, leaf_of_title = _levels(titles, level_ends, eos_id)
    num_children = np.bincount(nodes["parent"][1:], minlength=level_ends[-1]).astype(np.int32)
    nodes["num_children"] = num_children
    nodes["first_child"] = np.cumsum(num_children, dtype=np.int32) - num_children + 1
    starts = (0, *level_ends[:-2])  # of the levels that have children
    fan_out = tuple(np.maximum.reduceat(num_children[: level_ends[-2]], starts).tolist())
    return Built(
        nodes,
        {**item_columns(titles.title_of_item), "title_of_item": titles.title_of_item, "leaf_of_title": leaf_of_title},
        tree,
        int(titles.lengths.max()),
        fan_out,
        level_ends,
    )


def _distinct(title_tokens: np.ndarray, lengths: np.ndarray) -> _Titles:
    longest = int(lengths[1:].max())
    table = np.where(np.arange(longest) < lengths[:, None], title_tokens[:, :longest], -1).astype(np.int32)
    # Two tokens a key: half as many passes of the sort. A title's end is before every token.
    codes = np.pad(table[1:] + 1, ((0, 0), (0, longest % 2))).astype(np.uint64)
    keys = [codes[:, column] << np.uint64(32) | codes[:, column + 1] for column in range(0, longest, 2)]
    del codes
    order = np.lexsort(keys[::-1])  # stable: equal titles stay in order of item id
    starts = np.ones(len(order), bool)
    starts[1:] = False
    for key in keys:
        key = key[order]
        starts[1:] |= key[1:] != key[:-1]
    del keys
    title_of_item = np.full(len(table), -1, np.int32)
    title_of_item[order + 1] = np.cumsum(starts, dtype=np.int32) - 1
    canonical = (order[starts] + 1).astype(np.int32)
    table = table[canonical]
    shared, same = np.zeros(len(table), np.int32), np.ones(len(table), bool)
    same[0] = False
    for column in table.T:
        same[1:] &= column[1:] == column[:-1]
        shared += same
    return _Titles(table, lengths[canonical].astype(np.int32), shared, title_of_item, canonical)


def _level_ends(titles: _Titles) -> tuple[int, ...]:
    """One past the last node at depth 0, 1, …: a title brings those from `shared + 1` to its EOS."""
    longest = titles.table.shape[1] + 3
    begun = np.cumsum(np.bincount(titles.shared + 1, minlength=longest))
    ended = np.cumsum(np.bincount(titles.lengths + 2, minlength=longest))
    of_level = (begun - ended)[1 : titles.table.shape[1] + 2]
    return (1, *(1 + np.cumsum(of_level)).tolist())


def _levels(titles: _Titles, level_ends: tuple[int, ...], eos_id: int) -> tuple[Columns, Columns, np.ndarray]:
    table, lengths, shared, _, canonical = titles
    number, own = level_ends[-1], lengths - shared  # nodes that each title brings, without its EOS
    before_row = np.concatenate([[0], np.cumsum(own)]).astype(np.int32)
    nodes = {name: np.zeros(number, np.int32) for name in ("token", "first_title", "end_title", "parent", "leaf_item")}
    nodes["tree_node"] = np.full(number, -1, np.int32)
    nodes["parent"][0], nodes["end_title"][0] = -1, len(table)
    tree = {name: np.zeros(before_row[-1], np.int32) for name in ("token", "parent", "depth", "end")}
    tree["last"] = before_row[1:] - 1  # the last that a title brings is its own
    leaf_of_title = np.zeros(len(table), np.int32)
    above = np.zeros(len(table), np.int32)  # the node above on each title's path
    for depth, start in enumerate(level_ends[:-1], start=1):
        apart = shared < depth
        new = apart & (depth <= lengths + 1)
        rows = np.flatnonzero(new).astype(np.int32)
        here = slice(start, start + len(rows))
        next_apart = np.append(np.flatnonzero(apart), len(table)).astype(np.int32)
        nodes["first_title"][here] = rows
        nodes["end_title"][here] = ends = next_apart[np.cumsum(apart, dtype=np.int32)[rows]]
        nodes["parent"][here] = parents = above[rows]
        is_leaf = lengths[rows] + 1 == depth
        nodes["leaf_item"][here] = np.where(is_leaf, canonical[rows], 0)
        leaf_of_title[rows[is_leaf]] = start + np.flatnonzero(is_leaf)
        inner = rows[~is_leaf]
        tokens = np.full(len(rows), eos_id, np.int32)
        if depth <= table.shape[1]:
            tokens[~is_leaf] = table[inner, depth - 1]
        nodes["token"][here] = tokens
        places = before_row[inner] + depth - shared[inner] - 1
        tree_nodes = np.full(len(rows), -1, np.int32)
        tree_nodes[~is_leaf] = places
        nodes["tree_node"][here] = tree_nodes
        tree["token"][places] = tokens[~is_leaf]
        tree["parent"][places] = nodes["tree_node"][parents[~is_leaf]]
        tree["depth"][places] = depth
        tree["end"][places] = before_row[ends[~is_leaf]]
        above = start - 1 + np.cumsum(new, dtype=np.int32)
    return nodes, tree, leaf_of_title


def item_columns(title_of_item: np.ndarray, left: np.ndarray | None = None) -> Columns:
    """What a trie knows of items: `canonical_item`, `group_size`, `next_twin`, `items_before`.

    Args:
        title_of_item: int `[I+1]`, -1 for item 0.
        left: bool `[I+1]`, the items that there are; None: all.
    """
    exists = title_of_item >= 0 if left is None else left & (title_of_item >= 0)
    items, titles = np.flatnonzero(exists), title_of_item.max() + 1
    order = items[np.argsort(title_of_item[items], kind="stable")]  # twins side by side, the lowest item first
    twins = title_of_item[order[1:]] == title_of_item[order[:-1]]
    next_twin = np.zeros(len(title_of_item), np.int32)
    next_twin[order[:-1]] = np.where(twins, order[1:], 0)
    lowest, first = np.zeros(titles, np.int32), np.append(True, ~twins)
    lowest[title_of_item[order[first]]] = order[first]
    sizes = np.bincount(title_of_item[items], minlength=titles)
    return {
        "canonical_item": np.where(title_of_item >= 0, lowest[title_of_item], 0),
        "group_size": np.where(exists, sizes[title_of_item], 0),
        "next_twin": next_twin,
        "items_before": np.concatenate([[0], np.cumsum(sizes)]),
    }

"""The arrays of a `CatalogueTrie`, level by level in NumPy, whatever the number of titles.

Sorted titles (EOS sorts before every token) number the nodes by themselves. What title r does not share with title
r - 1 are new nodes: read title by title they are in preorder, read level by level in breadth-first order, where the
children of a node stand side by side. Arrays may be longer than they need be (`Capacity`): behind the titles, the
items and the nodes of each level there are some that nothing leads to, so that further titles find room.
"""

import itertools
from typing import NamedTuple

import numpy as np

from user_llm.errors import UserError

Columns = dict[str, np.ndarray]

MOST_NODES = np.iinfo(np.int32).max
"""Of a trie: on the device its arrays are int32."""


class Titles(NamedTuple):
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


class Capacity(NamedTuple):
    """For how much the arrays of a trie have room.

    Attributes:
        items: I + 1.
        titles: R.
        level_ends: one past the last node at depth 0, 1, …
        fan_out: children of a node at depth 0, 1, …
        tree: nodes of `TitleTree`.
    """

    items: int
    titles: int
    level_ends: tuple[int, ...]
    fan_out: tuple[int, ...]
    tree: int

    @classmethod
    def of(cls, titles: Titles, room: int = 0, longest: int = 0) -> "Capacity":
        """Of these titles and `room` more, of up to `longest` tokens; a title brings a node to each level at most."""
        exact = _fan_out(titles)
        levels = max(longest + 1, len(exact)) if room else len(exact)
        wider = tuple(n + max(8, n // 8) for n in exact) if room else exact
        return cls(
            len(titles.title_of_item) + room,
            len(titles.table) + room,
            (1, *(1 + np.cumsum(_level_sizes(titles, levels) + room)).tolist()),
            (*wider, *[8] * (levels - len(exact))),
            int((titles.lengths - titles.shared).sum()) + room * (levels - 1),
        )

    def holds(self, titles: Titles) -> bool:
        """Whether there is room for these."""
        exact, levels = _fan_out(titles), len(self.fan_out)
        return (
            len(titles.title_of_item) <= self.items
            and len(titles.table) <= self.titles
            and len(exact) <= levels
            and all(own <= most for own, most in zip(exact, self.fan_out, strict=False))
            and bool((_level_sizes(titles, levels) <= np.diff(self.level_ends)).all())
            and int((titles.lengths - titles.shared).sum()) <= self.tree
        )


class Built(NamedTuple):
    """Columns of the nodes breadth first, of items and titles, and of the nodes in preorder."""

    nodes: Columns
    items: Columns
    tree: Columns


def build_columns(titles: Titles, eos_id: int, capacity: Capacity) -> Built:
    """Of titles in arrays of some capacity, which holds them.

    Raises:
        UserError: they have more than `MOST_NODES` nodes.
    """
    if (number := capacity.level_ends[-1]) > MOST_NODES:
        raise UserError(
            f"the trie of {len(titles.table):,} titles has {number:,} nodes, and {MOST_NODES:,} at most can be "
            "numbered: cut titles with prompt.max_targets, or have fewer items."
        )
    nodes, tree, leaf_of_title = _levels(titles, capacity, eos_id)
    title_of_item = np.full(capacity.items, -1, np.int32)
    title_of_item[: len(titles.title_of_item)] = titles.title_of_item
    items = item_columns(title_of_item, capacity.titles)
    return Built(nodes, {**items, "title_of_item": title_of_item, "leaf_of_title": leaf_of_title}, tree)


def sorted_titles(title_tokens: np.ndarray, lengths: np.ndarray) -> Titles:
    """Of titles int `[I+1, T]` and their lengths `[I+1]`, as `CatalogueTrie.build` takes them."""
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
    return Titles(table, lengths[canonical].astype(np.int32), shared, title_of_item, canonical)


def merged(titles: Titles, title_tokens: np.ndarray, lengths: np.ndarray) -> Titles:
    """With further items, int `[M, T]` and `[M]`, whose ids come behind; the old titles are not sorted again."""
    more = sorted_titles(np.pad(title_tokens, ((1, 0), (0, 0))), np.pad(lengths, (1, 0)))
    longest = max(titles.table.shape[1], more.table.shape[1])
    old, new = (
        np.pad(one.table, ((0, 0), (0, longest - one.table.shape[1])), constant_values=-1) for one in (titles, more)
    )
    places = _places(old, new)
    known = (old[np.minimum(places, len(old) - 1)] == new).all(axis=1)
    at = places[~known]
    rows = at + np.arange(len(at))  # where the new ones stand in the end
    table = np.insert(old, at, new[~known], axis=0)
    moved = np.arange(len(old)) + np.searchsorted(at, np.arange(len(old)), side="right")  # the old ones, in the end
    row_of_new = np.where(known, moved[np.minimum(places, len(old) - 1)], 0)
    row_of_new[~known] = rows
    first_id = len(titles.title_of_item) - 1
    shared = np.insert(titles.shared, at, 0)
    changed = np.unique(np.concatenate([rows, rows + 1]))
    changed = changed[changed < len(table)]
    same = np.logical_and.accumulate(table[changed] == table[changed - 1], axis=1).sum(axis=1)
    shared[changed] = np.where(changed > 0, same, 0)
    return Titles(
        table,
        np.insert(titles.lengths, at, more.lengths[~known]),
        shared,
        np.concatenate([[-1], moved[titles.title_of_item[1:]], row_of_new[more.title_of_item[1:]]]).astype(np.int32),
        np.insert(titles.canonical, at, more.canonical[~known] + first_id),
    )


def _places(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Where `rows` `[M, T]` belong in the sorted `table` `[R, T]`: int `[M]`, before a row that is equal."""
    low, high = np.zeros(len(rows), np.int64), np.full(len(rows), len(table))
    each = np.arange(len(rows))
    while (low < high).any():
        middle = (low + high) // 2
        found = table[np.minimum(middle, len(table) - 1)]
        first = (found != rows).argmax(axis=1)  # where they differ; 0 where they do not
        before, open_ = found[each, first] < rows[each, first], low < high
        low, high = np.where(open_ & before, middle + 1, low), np.where(open_ & ~before, middle, high)
    return low


def _level_sizes(titles: Titles, levels: int) -> np.ndarray:
    """The nodes at depth 1, 2, …: a title brings those from `shared + 1` to its EOS."""
    longest = max(levels, titles.table.shape[1]) + 3
    begun = np.cumsum(np.bincount(titles.shared + 1, minlength=longest))
    ended = np.cumsum(np.bincount(titles.lengths + 2, minlength=longest))
    return np.asarray((begun - ended)[1 : levels + 1])


def _fan_out(titles: Titles) -> tuple[int, ...]:
    """The most children of a node at depth 0, 1, …"""
    shared, most = titles.shared, []
    for depth in range(titles.table.shape[1] + 1):
        # A child is a title's first under its parent, or one that parts from the title before just here.
        parents = np.flatnonzero((shared < depth) & (titles.lengths >= depth)) if depth else np.zeros(1, int)
        ends = np.append(np.flatnonzero(shared < depth), len(shared))
        ends = ends[np.searchsorted(ends, parents, side="right")] if depth else np.array([len(shared)])
        parts = np.concatenate([[0], np.cumsum((shared == depth) & (np.arange(len(shared)) > 0))])
        most.append(int((1 + parts[ends] - parts[parents + 1]).max()))
    return tuple(most)


def _levels(titles: Titles, capacity: Capacity, eos_id: int) -> tuple[Columns, Columns, np.ndarray]:
    table, lengths, shared, _, canonical = titles
    level_ends, number = capacity.level_ends, capacity.level_ends[-1]
    own = lengths - shared  # nodes that each title brings, without its EOS
    before_row = np.concatenate([[0], np.cumsum(own)]).astype(np.int32)
    names = ("token", "first_title", "end_title", "parent", "leaf_item", "first_child", "num_children")
    nodes = {name: np.zeros(number, np.int32) for name in names}
    nodes["tree_node"] = np.full(number, -1, np.int32)
    nodes["parent"][0], nodes["end_title"][0] = -1, len(table)
    tree = {name: np.zeros(capacity.tree, np.int32) for name in ("token", "end")}
    tree["parent"], tree["depth"] = np.full(capacity.tree, -1, np.int32), np.ones(capacity.tree, np.int32)
    tree["last"] = np.zeros(capacity.titles, np.int32)
    tree["last"][: len(table)] = before_row[1:] - 1  # the last that a title brings is its own
    leaf_of_title = np.zeros(capacity.titles, np.int32)
    above = np.zeros(len(table), np.int32)  # the node above on each title's path
    for depth, (start, end) in enumerate(itertools.pairwise(level_ends), start=1):
        apart = shared < depth
        new = apart & (depth <= lengths + 1)
        rows = np.flatnonzero(new).astype(np.int32)
        here = slice(start, start + len(rows))
        next_apart = np.append(np.flatnonzero(apart), len(table)).astype(np.int32)
        nodes["first_title"][here] = rows
        nodes["end_title"][here] = ends = next_apart[np.cumsum(apart, dtype=np.int32)[rows]]
        nodes["parent"][here] = parents = above[rows]
        nodes["parent"][start + len(rows) : end] = start - 1  # in order, as all are
        over = slice(level_ends[depth - 2] if depth > 1 else 0, start)
        nodes["num_children"][over] = counts = np.bincount(parents - over.start, minlength=start - over.start)
        nodes["first_child"][over] = start + np.cumsum(counts) - counts
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


def item_columns(title_of_item: np.ndarray, titles: int, left: np.ndarray | None = None) -> Columns:
    """What a trie knows of items: `canonical_item`, `group_size`, `next_twin`, `items_before`.

    Args:
        title_of_item: int `[I+1]`, -1 for item 0.
        titles: R.
        left: bool `[I+1]`, the items that there are; None: all.
    """
    exists = title_of_item >= 0 if left is None else left & (title_of_item >= 0)
    items = np.flatnonzero(exists)
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

"""The flat arrays of the trie against a trie of Python dicts."""

import numpy as np
import pytest

from user_llm.decoding import trie_building
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.errors import UserError

EOS = 2


def padded(titles: list[list[int]], width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Tokens `[I+1, T]` and lengths `[I+1]` of the titles of items 1, 2, …"""
    lengths = np.array([0] + [len(title) for title in titles])
    table = np.full((len(titles) + 1, width or lengths.max()), 5, np.int32)  # what stands behind is not read
    for row, title in enumerate(titles, start=1):
        table[row, : len(title)] = title
    return table, lengths


@pytest.fixture(scope="module")
def titles() -> list[list[int]]:
    rng = np.random.default_rng(0)
    # A small alphabet: many shared prefixes, titles that are prefixes of others, equal titles. 0 < EOS < 3.
    return [rng.choice([0, 3, 4, 5, 6], size=rng.integers(1, 6)).tolist() for _ in range(300)]


@pytest.fixture(scope="module")
def trie(titles) -> CatalogueTrie:
    return CatalogueTrie.build(*padded(titles, width=9), EOS)


def test_walking_down_the_children_spells_every_title_and_nothing_else(trie, titles):
    token, first, count, leaf = (
        np.asarray(x) for x in (trie.token, trie.first_child, trie.num_children, trie.leaf_item)
    )
    spelled, stack = {}, [(0, ())]
    while stack:
        node, path = stack.pop()
        children = range(first[node], first[node] + count[node])
        assert len({token[child] for child in children}) == len(children)
        assert (leaf[node] > 0) == (not children) == (path[-1:] == (EOS,))
        if not children:
            assert path not in spelled
            spelled[path] = leaf[node]
        if EOS in token[list(children)]:
            assert token[children[0]] == EOS
        stack.extend((child, (*path, int(token[child]))) for child in children)
    lowest = {}
    for item, title in enumerate(titles, start=1):
        lowest.setdefault((*title, EOS), item)
    assert spelled == lowest


def test_every_node_knows_the_range_of_its_titles(trie, titles):
    first, count = np.asarray(trie.first_child), np.asarray(trie.num_children)
    in_order = sorted({tuple(title) for title in titles})
    stack = [(0, ())]
    while stack:
        node, path = stack.pop()
        under = [row for row, title in enumerate(in_order) if (*title, EOS)[: len(path)] == path]
        assert list(range(trie.first_title[node], trie.end_title[node])) == under
        children = range(first[node], first[node] + count[node])
        stack.extend((child, (*path, int(trie.token[child]))) for child in children)
    assert trie.num_titles == len(in_order)


def test_equal_titles_share_a_leaf_and_are_counted(trie, titles):
    groups = {}
    for item, title in enumerate(titles, start=1):
        groups.setdefault(tuple(title), []).append(item)
    assert max(map(len, groups.values())) > 1
    in_order = sorted(groups)
    for title, items in groups.items():
        assert (np.asarray(trie.canonical_item)[items] == min(items)).all()
        assert (np.asarray(trie.group_size)[items] == len(items)).all()
        assert (np.asarray(trie.title_of_item)[items] == in_order.index(title)).all()
    assert (trie.canonical_item[0], trie.group_size[0], trie.title_of_item[0]) == (0, 0, -1)


def test_the_open_item_of_a_title_is_the_lowest_that_is_not_excluded(trie, titles):
    random = np.random.default_rng(3)
    items = random.integers(0, len(titles) + 1, (4, 60)).astype(np.int32)
    excluded = random.integers(0, len(titles) + 1, (4, 250)).astype(np.int32)
    found = np.asarray(trie.open_items(items, excluded))
    for row, of_row, banned in zip(found, items, excluded, strict=True):
        for item, named in zip(of_row, row, strict=True):
            twins = [twin for twin, title in enumerate(titles, start=1) if item and title == titles[item - 1]]
            assert named == min(set(twins) - set(banned), default=0)
    assert ((found != items) & (found > 0)).any()
    assert ((found == 0) & (items > 0)).any()


def test_fan_out_is_the_most_children_at_each_depth(trie, titles):
    children = {}
    for title in titles:
        closed = (*title, EOS)
        for depth, token in enumerate(closed):
            children.setdefault(closed[:depth], set()).add(token)
    expected = [0] * (max(map(len, titles)) + 1)
    for prefix, tokens in children.items():
        expected[len(prefix)] = max(expected[len(prefix)], len(tokens))
    assert trie.fan_out == tuple(expected)


def test_title_tree_is_in_preorder(trie, titles):
    tree = trie.tree
    prefixes = sorted({tuple(title[: n + 1]) for title in titles for n in range(len(title))})
    spelled = []
    for node in range(len(tree.token)):
        parent = int(tree.parent[node])
        spelled.append((() if parent < 0 else spelled[parent]) + (int(tree.token[node]),))
    assert spelled == prefixes  # sorted order is preorder
    assert tree.depth.tolist() == [len(prefix) for prefix in prefixes]
    for node, prefix in enumerate(prefixes):
        under = [other[: len(prefix)] == prefix for other in prefixes[node:]]
        assert tree.end[node] - node == sum(under)
    for item, title in enumerate(titles, start=1):
        assert spelled[tree.last[trie.title_of_item[item]]] == tuple(title)


def test_a_single_title_of_a_single_token():
    trie = CatalogueTrie.build(*padded([[7]]), EOS)
    assert trie.fan_out == (1, 1)
    assert trie.token.tolist() == [0, 7, EOS]
    assert trie.leaf_item.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("titles", "message"),
    [
        ([[5], []], r"title of item 2 is empty \(1 such items\)"),
        ([[5, 2], [2]], r"title of item 1 holds EOS \(2\) \(2 such items\)"),
    ],
)
def test_bad_titles_are_named(titles, message):
    with pytest.raises(ValueError, match=message):
        CatalogueTrie.build(*padded(titles), EOS)


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="title of item 1 is longer than the table"):
        CatalogueTrie.build(np.full((2, 3), 5), np.array([0, 4]), EOS)
    with pytest.raises(ValueError, match=r"at least one item, got shapes \(1, 3\) and \(1,\)"):
        CatalogueTrie.build(np.full((1, 3), 5), np.array([0]), EOS)


def test_more_nodes_than_can_be_numbered_are_refused(titles, trie, monkeypatch):
    nodes = len(trie.token)
    monkeypatch.setattr(trie_building, "MOST_NODES", nodes)
    CatalogueTrie.build(*padded(titles), EOS)
    monkeypatch.setattr(trie_building, "MOST_NODES", nodes - 1)
    with pytest.raises(UserError, match=f"{nodes:,} nodes, and {nodes - 1:,} at most"):
        CatalogueTrie.build(*padded(titles), EOS)

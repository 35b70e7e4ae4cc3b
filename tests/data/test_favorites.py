from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from user_llm.data import favorites
from user_llm.data.favorites import FavoriteCategorySource, favorite_categories
from user_llm.data.windows import Windows


def naive_favorite(history, item_categories):
    """The definition, event by event: count, then of the most frequent the latest, then the first listed."""
    events = [[category for category in item_categories[item] if category] for item in history if item]
    counts = Counter(category for event in events for category in event)
    frequent = [category for category, count in counts.items() if count == max(counts.values())]
    for event in reversed(events):
        for category in event:
            if category in frequent:
                return category
    return 0


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10_000), categories=st.integers(1, 6), width=st.integers(1, 4), length=st.integers(1, 8))
def test_favorites_equal_the_definition(seed, categories, width, length):
    random = np.random.default_rng(seed)
    item_categories = np.zeros((9, width), np.int32)
    for row in item_categories[1:]:
        of_item = random.permutation(categories)[: random.integers(0, width + 1)] + 1
        row[: len(of_item)] = of_item
    history = random.integers(1, 9, (7, length))
    history[np.arange(length) < random.integers(0, length + 1, (7, 1))] = 0
    found = favorite_categories(history, item_categories)
    assert found.dtype == np.int32
    assert found.tolist() == [naive_favorite(row, item_categories) for row in history]


def test_parts_of_a_batch_give_what_the_whole_gives(monkeypatch):
    random = np.random.default_rng(0)
    history, item_categories = random.integers(0, 30, (50, 6)), random.integers(0, 5, (30, 2))
    whole = favorite_categories(history, item_categories)
    seen, part = [], favorites._favorites
    monkeypatch.setattr(favorites, "_favorites", lambda rows, sets: seen.append(len(rows)) or part(rows, sets))
    monkeypatch.setattr(favorites, "_SLOTS_AT_ONCE", 40)
    np.testing.assert_array_equal(favorite_categories(history, item_categories), whole)
    assert max(seen) == 40 // 12  # 6 events of 2 categories: what bounds memory, however few categories there are
    assert favorite_categories(history[:0], item_categories).shape == (0,)


def test_the_label_event_is_not_counted(table):
    """Every event has an item of its own: whatever the label is, the favourite is that of the history alone."""
    windows = Windows(table, history_length=3, split="test", min_history=1)
    source = FavoriteCategorySource(windows, table.catalogue.item_categories)
    assert len(source) == len(windows)
    batch = source.gather(np.arange(len(source)))
    assert set(batch) == {*windows.gather(np.arange(1)), "label/category"}
    for row, place in enumerate(windows.label_positions(np.arange(len(source)))):
        start = max(table.offsets[batch["user"][row]], place - 3)
        expected = naive_favorite(table.item[start:place], table.catalogue.item_categories)
        assert batch["label/category"][row] == expected

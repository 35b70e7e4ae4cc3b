"""Timelines without some items, and the questions about these, against loops over events."""

import numpy as np

from user_llm.data.cold import asked_about, choose_cold_items, without_items


def test_the_same_share_of_items_for_every_run():
    cold = choose_cold_items(200, 0.05)
    assert cold.sum() == 10
    assert not cold[0]
    np.testing.assert_array_equal(cold, choose_cold_items(200, 0.05))
    assert choose_cold_items(3, 0.01).sum() == 1


def events(table):
    """[(item, rating, timestamp)] of each user."""
    columns = list(zip(table.item.tolist(), table.rating.tolist(), table.timestamp.tolist(), strict=True))
    return [columns[start:end] for start, end in zip(table.offsets[:-1], table.offsets[1:], strict=True)]


def test_no_event_of_a_cold_item_is_left(table):
    cold = choose_cold_items(table.catalogue.num_items, 0.3)
    left = without_items(table, cold)
    assert events(left) == [[event for event in user if not cold[event[0]]] for user in events(table)]
    assert list(left.user_ids) == list(table.user_ids)


def test_every_cold_event_is_asked_about_behind_the_others_before_it(table):
    cold = choose_cold_items(table.catalogue.num_items, 0.3)
    expected = []
    for user in events(table):
        for place, event in enumerate(user):
            before = [other for other in user[:place] if not cold[other[0]]]
            if cold[event[0]] and before:
                expected.append([*before, event])
    assert len(expected) > 5
    assert events(asked_about(table, cold, 0)) == expected
    some = events(asked_about(table, cold, 3))
    assert some == [expected[0], expected[(len(expected) - 1) // 2], expected[-1]]

"""Items that no model learns of, and what is asked about them (`evaluation.cold_share`)."""

import dataclasses

import numpy as np

from user_llm.data.timelines import TimelineTable

_SEED = 20  # of the choice, the same for runs with other seeds: they are compared on the same items


def choose_cold_items(num_items: int, share: float) -> np.ndarray:
    """Which items are cold: bool [I+1], `share` of them, at least one."""
    cold = np.zeros(num_items + 1, bool)
    count = max(1, round(share * num_items))
    cold[1 + np.random.default_rng(_SEED).permutation(num_items)[:count]] = True
    return cold


def without_items(table: TimelineTable, cold: np.ndarray) -> TimelineTable:
    """The timelines without the events of items where bool `cold` [I+1], and without reviews."""
    kept = ~cold[table.item]
    before = np.concatenate([[0], np.cumsum(kept)])
    columns = {name: getattr(table, name)[kept] for name in ("item", "rating", "timestamp")}
    return dataclasses.replace(table, **columns, offsets=before[table.offsets], review_texts=None)


def asked_about(table: TimelineTable, cold: np.ndarray, most: int) -> TimelineTable:
    """A timeline for each event of a cold item that has others before it: those, without cold ones, and it.

    Args:
        most: events, evenly spread over all; 0 takes all.
    """
    user = np.repeat(np.arange(table.num_users), np.diff(table.offsets))
    is_cold = cold[table.item]
    before = np.concatenate([[0], np.cumsum(~is_cold)])  # warm events before each place
    places = np.flatnonzero(is_cold & (before[:-1] > before[table.offsets[user]]))
    if most and len(places) > most:
        places = places[np.linspace(0, len(places) - 1, most).astype(np.int64)]
    warm = np.flatnonzero(~is_cold)
    starts, ends = before[table.offsets[user[places]]], before[places]
    lengths = ends - starts + 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    last = np.repeat(lengths, lengths) - 1
    chosen = warm[np.minimum(np.repeat(starts, lengths) + place, len(warm) - 1)]
    chosen = np.where(place == last, np.repeat(places, lengths), chosen)
    return dataclasses.replace(
        table,
        **{name: getattr(table, name)[chosen] for name in ("item", "rating", "timestamp")},
        offsets=offsets,
        user_ids=[table.user_ids[one] for one in user[places]],
        review_texts=None,
    )

"""Rows of the next-item table that count which items follow one another, and which share users: no model.

Both are a matrix of items by items, read for the events of a history, of which the newest count most. Where users have
a handful of events they are hard to beat. Held-out events are in neither.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import scipy.sparse as sparse

from user_llm.evaluation.blocks import user_spans
from user_llm.evaluation.places import Places
from user_llm.evaluation.scores import ItemScores, Scores

REACH = 10  # events after an item that count as following it
NEIGHBOURS = 200  # kept of an item
LONGEST = 500  # of a timeline, the newest events that say which items share users: pairs grow with its square
_COLUMNS = 1024  # items whose neighbours are counted at once


def followers(item: np.ndarray, offsets: np.ndarray, num_items: int, held_out: Places) -> sparse.csr_array:
    """How an item's followers are distributed: float32 `[I+1, I+1]`, rows of sum 1, or empty.

    An item counts 1/d where it comes d events later, up to `REACH`.

    Args:
      item: int `[E]`, user after user, each in time order.
      offsets: int `[users + 1]`; user u's events are `offsets[u] : offsets[u + 1]`.
      num_items: I.
      held_out: events that are not counted.
    """
    counts = sparse.csr_array((num_items + 1, num_items + 1), dtype=np.float32)
    for items, users in _known(item, offsets, held_out):
        for distance in range(1, REACH + 1):
            one = users[:-distance] == users[distance:]
            pair = items[:-distance][one], items[distance:][one]
            weights = np.full(len(pair[0]), 1 / distance, np.float32)
            counts += sparse.coo_array((weights, pair), shape=counts.shape).tocsr()
    sums = counts.sum(axis=1)
    return sparse.diags_array(1 / np.where(sums > 0, sums, 1), dtype=np.float32).tocsr() @ counts


def similar_items(item: np.ndarray, offsets: np.ndarray, num_items: int, held_out: Places) -> sparse.csr_array:
    """Item-kNN (Sarwar et al. 2001): the cosine of two items' users, float32 `[I+1, I+1]`, of the likest `NEIGHBOURS`.

    The arguments are those of `followers`.
    """
    rows, columns, first = [], [], 0
    for items, users in _known(item, offsets, held_out):
        newest = np.searchsorted(users, users, side="right") - np.arange(len(users)) <= LONGEST
        _, numbers = np.unique(users[newest], return_inverse=True)
        rows.append(numbers + first)
        columns.append(items[newest])
        first += numbers.max(initial=-1) + 1
    row, column = np.concatenate([np.zeros(0, int), *rows]), np.concatenate([np.zeros(0, int), *columns])
    met = sparse.coo_array((np.ones(len(row), np.float32), (row, column)), shape=(first, num_items + 1)).tocsc()
    met.data[:] = 1  # however often
    lengths = np.sqrt(np.asarray(met.sum(axis=0)))
    met = met @ sparse.diags_array(1 / np.where(lengths > 0, lengths, 1), dtype=np.float32).tocsc()
    blocks = [
        _best((met[:, start : start + _COLUMNS].T @ met).tocsr(), start) for start in range(0, num_items + 1, _COLUMNS)
    ]
    return sparse.vstack(blocks, format="csr")


def neighbour_scores(matrix: sparse.csr_array, counts: np.ndarray, *, decay: float) -> Scores:
    """Scores items by the neighbours of the history's events; popularity orders what scores the same.

    Args:
      matrix: float32 `[I+1, I+1]`; row i is added for an event of item i.
      counts: int `[I+1]`, how popular each item is.
      decay: what an event counts of the one after it.
    """
    popularity = 1e-6 * counts / max(counts.max(), 1)

    def scores(batch: Mapping[str, np.ndarray]) -> ItemScores:
        history = batch["history/item"]
        rows, slots = np.nonzero(history)
        weights = decay ** (history.shape[1] - 1 - slots)
        events = sparse.coo_array((weights, (rows, history[rows, slots])), shape=(len(history), len(counts)))
        found = (events.tocsr() @ matrix).tocsc()  # as sparse as the histories' neighbours

        def block(first: int, count: int) -> np.ndarray:
            values = found[:, first : first + count].toarray() + popularity[first : first + count]
            if first == 0:
                values[:, 0] = -np.inf
            return values

        return ItemScores(len(counts), block)

    return scores


def _known(item: np.ndarray, offsets: np.ndarray, held_out: Places) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Items and users [n] of the events that may be counted, a block of whole timelines after the other."""
    for first, end in user_spans(offsets):
        start, stop = offsets[first], offsets[end]
        known = ~held_out.mask(start, stop)
        users = np.repeat(np.arange(end - first), np.diff(offsets[first : end + 1]))
        yield np.asarray(item[start:stop])[known], users[known]


def _best(similar: sparse.csr_array, first: int) -> sparse.csr_array:
    """The largest `NEIGHBOURS` of each row, without an item's own place; row 0 is item `first`."""
    similar = similar.tocoo()
    row, column = similar.coords
    other = column != row + first
    row, column, values = row[other], column[other], similar.data[other]
    order = np.lexsort((column, -values, row))
    row, column, values = row[order], column[order], values[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    kept = place < NEIGHBOURS
    return sparse.coo_array((values[kept], (row[kept], column[kept])), shape=similar.shape).tocsr()

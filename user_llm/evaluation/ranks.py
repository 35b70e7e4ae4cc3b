"""Exact ranks among the whole catalogue, and the best items, of scores that come in blocks (`scores.ItemScores`).

A label's score is read off its own block, so that it is the very number that the others are compared with, and
then every block is counted once. A catalogue of up to `BLOCK` items is one block, which is scored once. Blocks on the
device are counted there; NumPy's are counted by NumPy, in their own dtype.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from user_llm.evaluation.scores import Array, ItemScores

BLOCK = 1 << 17  # items scored at once: 32 MB for 64 users
TOP = 10  # items kept of a ranking


class Ranking(NamedTuple):
    """Of the users of a batch, NumPy's or on the device.

    Attributes:
      ranks: int `[B]`: 1 + the other rankable items that score at least as high as the label. Ties count against the
        model, so that a constant score earns nothing.
      items: int `[B, TOP]`, best first, of a tie the lower; 0 behind the last answer (not -inf).
      unordered: bool `[B]`, rows with a score that is NaN: they have no ranking.
    """

    ranks: Array
    items: Array
    unordered: Array


class _Counted(NamedTuple):
    """Of the blocks so far: how many items score at least as high as the label `[B]`; the best of them `[B, TOP]`."""

    ahead: Array
    best: Array
    items: Array
    unordered: Array


class _Tools(NamedTuple):
    """What NumPy and JAX do not have in common."""

    xp: Any
    mark: Callable[[Any, Any], Any]
    top: Callable[[Any, int], Any]


def rank_labels(scores: ItemScores, labels: np.ndarray, excluded: np.ndarray | None = None) -> Ranking:
    """Ranks of `labels` and the best items, in memory for two blocks of scores.

    Args:
      labels: int `[B]`, item ids from 1. A label stays rankable even where it is excluded (a user may come back to
        an item).
      excluded: int `[B, E]`, items that are no answer for that row, 0-padded.

    Raises:
      ValueError: a label is none of the items.
    """
    if np.any((labels < 1) | (labels >= scores.width)):
        raise ValueError(
            f"labels must be item ids from 1 to {scores.width - 1}; got some from {labels.min()} to {labels.max()}."
        )
    excluded = np.zeros((len(labels), 0), np.int32) if excluded is None else excluded
    excluded = np.where(excluded == labels[:, None], 0, excluded)
    width, size = scores.width, min(scores.width, BLOCK)
    block = functools.lru_cache(maxsize=1)(lambda first: scores.block(first, size))
    before = of_label = counted = None
    for first in (np.unique(labels // size) * size).tolist():
        before, values = of_label, block(first)
        of_label = _program(_label_scores, values)(before, values, np.int32(first), labels)
        jax.block_until_ready(before)  # no pile-up of blocks that wait for their turn
    for first in range(0, width, size):
        before, values = counted, block(first)
        counted = _program(_count, values)(before, values, np.int32(first), of_label, excluded, np.int32(width))
        jax.block_until_ready(before)
    found = cast(_Counted, counted)
    return Ranking(found.ahead, found.items, found.unordered)


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """The `count` items `[n, count]` of each row of `scores` `[n, I+1]`, or all where these are fewer.

    Best first, of a tie the lower; 0 behind the last answer (not -inf).
    """
    top = _top(scores, min(count, scores.shape[1]))
    return np.where(np.take_along_axis(scores, top, axis=1) > -np.inf, top, 0)


def _label_scores(tools: _Tools, so_far: Array | None, values: Array, first: Array, labels: Array) -> Array:
    """[B] `so_far`, with the scores of those labels that are in the block [B, V] of items from `first` on."""
    place = labels - first
    here = (place >= 0) & (place < values.shape[1])
    found = tools.xp.take_along_axis(values, tools.xp.where(here, place, 0)[:, None], axis=1)[:, 0]
    return found if so_far is None else tools.xp.where(here, found, so_far)


def _count(
    tools: _Tools,
    so_far: _Counted | None,
    values: Array,
    first: Array,
    of_label: Array,
    excluded: Array,
    width: Array,
) -> _Counted:
    """`so_far` with the block [B, V] of items from `first` on. Its lines are those of NumPy and of JAX."""
    xp, rows = tools.xp, values.shape[0]
    items = first + xp.arange(values.shape[1], dtype=xp.int32)
    behind = items >= width
    inside = (excluded >= first) & (excluded < first + values.shape[1])
    # One column more takes what is not here.
    closed = xp.broadcast_to(xp.append((items == 0) | behind, True), (rows, values.shape[1] + 1))
    closed = tools.mark(closed, xp.where(inside, excluded - first, values.shape[1]))[:, :-1]
    ahead = xp.sum((values >= of_label[:, None]) & ~closed, axis=1)
    unordered = xp.any(xp.isnan(values) & ~behind, axis=1)
    values = xp.where(closed | xp.isnan(values), -xp.inf, values)
    places = tools.top(values, min(TOP, values.shape[1]))
    found, best = items[places], xp.take_along_axis(values, places, axis=1)
    # From above come lower items, which stay first in a tie; the first block fills up to TOP.
    if so_far is None:
        none = xp.zeros((rows, TOP), xp.int32)
        so_far = _Counted(xp.zeros_like(ahead), xp.full((rows, TOP), -xp.inf, values.dtype), none, unordered)
    both, of_both = xp.append(so_far.best, best, axis=1), xp.append(so_far.items, found, axis=1)
    places = tools.top(both, TOP)
    best, of_best = (xp.take_along_axis(x, places, axis=1) for x in (both, of_both))
    of_best = xp.where(best > -xp.inf, of_best, 0)
    return _Counted(so_far.ahead + ahead, best, of_best, so_far.unordered | unordered)


def _top(scores: np.ndarray, count: int) -> np.ndarray:
    """Places int `[n, count]` of the highest in each row of `scores` `[n, V]`, highest first, of a tie the lower."""
    last = np.partition(scores, -count, axis=1)[:, [-count]]
    tied = scores == last
    better = scores > last
    among = better | (tied & (tied.cumsum(axis=1) <= count - better.sum(axis=1, keepdims=True)))
    top = np.nonzero(among)[1].reshape(len(scores), count)  # lower places first
    return np.take_along_axis(top, np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable"), axis=1)


def _top_of_device(scores: jax.Array, count: int) -> jax.Array:
    # Its order is total: -0 would stand behind 0.
    return jax.lax.top_k(jnp.where(scores == 0, 0.0, scores), count)[1]


def _mark(flags: np.ndarray, places: np.ndarray) -> np.ndarray:
    flags = flags.copy()
    np.put_along_axis(flags, places, True, axis=1)
    return flags


def _mark_on_device(flags: jax.Array, places: jax.Array) -> jax.Array:
    return flags.at[jnp.arange(len(flags))[:, None], places].set(True)


_HOST, _DEVICE = _Tools(np, _mark, _top), _Tools(jnp, _mark_on_device, _top_of_device)
_COMPILED = {step: jax.jit(functools.partial(step, _DEVICE)) for step in (_label_scores, _count)}


def _program(step: Callable[..., Any], values: Array) -> Callable[..., Any]:
    """A step as it goes with a block: compiled once for each shape, or NumPy's."""
    return _COMPILED[step] if isinstance(values, jax.Array) else functools.partial(step, _HOST)

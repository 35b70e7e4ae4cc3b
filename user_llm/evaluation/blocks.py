"""Long columns in blocks: who walks over all events, or all windows, holds one block of them at a time."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

BLOCK = 1 << 20  # events, or windows; a multiple of 8. Larger ones are no faster.


class Labelled(Protocol):
    """Windows, by the places of their labels in the flat columns."""

    def __len__(self) -> int: ...

    def label_positions(self, ids: np.ndarray) -> np.ndarray: ...


def spans(count: int) -> Iterator[tuple[int, int]]:
    """Where each block of `count` rows starts and stops."""
    for start in range(0, count, BLOCK):
        yield start, min(start + BLOCK, count)


def label_blocks(*windows: Labelled) -> Iterator[np.ndarray]:
    """The places of all labels, block after block: int64 [at most BLOCK]."""
    for some in windows:
        for start, stop in spans(len(some)):
            yield some.label_positions(np.arange(start, stop))


def by_span(blocks: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Cuts blocks of places at the multiples of BLOCK: where a span of events starts, and the places in it, ascending.

    A span comes once for each block that has a place in it: about once, where blocks ascend as labels do.
    """
    for block in blocks:
        if not len(block):
            continue
        places = np.sort(block, kind="stable")  # takes no time where they ascend already
        starts = np.arange(places[0] // BLOCK, places[-1] // BLOCK + 1) * BLOCK
        cuts = np.searchsorted(places, starts).tolist()
        for start, begin, end in zip(starts.tolist(), cuts, [*cuts[1:], len(places)], strict=True):
            if begin < end:
                yield start, places[begin:end]


def user_spans(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """First user and end of each block of whole timelines: of at most BLOCK events together, or of one user.

    Args:
      offsets: int [users + 1]; user u's events are `offsets[u] : offsets[u + 1]`.
    """
    first, users = 0, len(offsets) - 1
    while first < users:
        end = int(np.searchsorted(offsets, offsets[first] + BLOCK, side="right")) - 1
        end = max(end, first + 1)
        yield first, end
        first = end

"""Sets of events, by their places in the flat columns: a bit an event, whatever their number."""

from collections.abc import Iterable

import numpy as np

from user_llm.evaluation import blocks


class Places:
    """A set of places.

    Args:
      places: int blocks [n], in any order, with repetitions.
      events: E, how many places there are.
    """

    def __init__(self, places: Iterable[np.ndarray], events: int):
        self._bits = np.zeros(-(-events // 8), np.uint8)
        for start, here in blocks.by_span(places):
            mask = np.zeros(min(blocks.BLOCK, events - start), bool)
            mask[here - start] = True
            self._bits[start // 8 :][: -(-len(mask) // 8)] |= np.packbits(mask)

    def __len__(self) -> int:
        return sum(int(np.bitwise_count(self._bits[slice(*span)]).sum()) for span in blocks.spans(len(self._bits)))

    def mask(self, start: int, stop: int) -> np.ndarray:
        """Which of the places from `start` to before `stop` are in the set: bool [stop - start]."""
        bits = np.unpackbits(self._bits[start // 8 : -(-stop // 8)])
        return bits[start % 8 :][: stop - start].view(bool)

    def holds(self, places: np.ndarray) -> np.ndarray:
        """Which places int [n] are in the set: bool [n]."""
        return (self._bits[places >> 3] << (places & 7) & 0x80).astype(bool)

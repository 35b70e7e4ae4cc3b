"""A catalogue that changes while it is asked: its trie keeps its shapes, and with them what was compiled for it."""

import numpy as np

from user_llm.decoding.catalogue_trie import CatalogueTrie, check_titles
from user_llm.decoding.trie_building import Capacity, Titles, merged, sorted_titles

ROOM = 1024
"""Further titles for which there is room, by default."""


class GrowingTrie:
    """A `CatalogueTrie` with room for further titles. It does not change itself: `add` gives another one.

    Adding sorts none of the old titles, and needs no compilation until the room is used up; then the arrays become
    longer by as much room again. What is taken away is closed by `CatalogueTrie.only`.

    Args:
      titles: in order.
      eos_id: the token that closes a title.
      room: further titles when the arrays are made.
      capacity: of the arrays, which holds the titles.

    Attributes:
      trie: of all items. Behind them are ids of none yet, which no search finds.
      num_items: I.
    """

    def __init__(self, titles: Titles, eos_id: int, room: int, capacity: Capacity):
        self._titles, self._eos_id, self._room, self._capacity = titles, eos_id, room, capacity
        self.num_items = len(titles.title_of_item) - 1
        self.trie = CatalogueTrie.of_titles(titles, eos_id, capacity)

    @classmethod
    def build(cls, title_tokens: np.ndarray, lengths: np.ndarray, eos_id: int, room: int = ROOM) -> "GrowingTrie":
        """Builds the trie, with arguments and errors of `CatalogueTrie.build`; T is the longest title to come."""
        title_tokens, lengths = np.asarray(title_tokens), np.asarray(lengths)
        check_titles(title_tokens, lengths, eos_id)
        titles = sorted_titles(title_tokens, lengths)
        return cls(titles, eos_id, room, Capacity.of(titles, room, title_tokens.shape[1]))

    def add(self, title_tokens: np.ndarray, lengths: np.ndarray) -> "GrowingTrie":
        """With further items, whose ids come behind.

        Args:
          title_tokens, lengths: int `[M, T]` and `[M]`.

        Raises:
          UserError: as `CatalogueTrie.build`; items are counted among the new ones.
        """
        title_tokens, lengths = np.asarray(title_tokens), np.asarray(lengths)
        check_titles(np.pad(title_tokens, ((1, 0), (0, 0))), np.pad(lengths, (1, 0)), self._eos_id)
        titles, capacity = merged(self._titles, title_tokens, lengths), self._capacity
        if not capacity.holds(titles):
            capacity = Capacity.of(titles, self._room, len(capacity.fan_out) - 1)
        return GrowingTrie(titles, self._eos_id, self._room, capacity)

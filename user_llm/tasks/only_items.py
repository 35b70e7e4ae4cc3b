"""A run as its tasks see it, with fewer answers than it was trained for."""

from typing import Any

import numpy as np

from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.tasks.base import Study


class OnlyItems:
    """A `Study` whose answers are some of the items; all else is that of `study`.

    Args:
      study: of a finished run.
      task: whose answers they are.
      items: bool `[I+1]`, those that may be answered.

    Raises:
      UserError: there are none.
    """

    def __init__(self, study: Study, task: str, items: np.ndarray):
        self._study = study
        self._trie = study.answer_trie(task).only(items)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def answer_trie(self, task: str) -> CatalogueTrie:
        """The titles of the items that are left."""
        del task
        return self._trie

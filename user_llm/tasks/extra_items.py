"""Items that came after the training: a run as its tasks see it, with more answers than it was trained for."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from user_llm.data.timelines import Catalogue
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.evaluation.fusion import Fusion
from user_llm.models.model import Model
from user_llm.tasks.base import Study


class WithExtraItems:
    """A `Study` whose answers may be more titles; all else is that of `study`.

    Args:
      study: of a finished run.
      titles: no two alike, none in the run's catalogue; they get the ids behind its items.
      trie: of all items.
    """

    def __init__(self, study: Study, titles: Sequence[str], trie: CatalogueTrie):
        self._study, known = study, study.catalogue
        self._extra = np.arange(known.num_items + 1, known.num_items + 1 + len(titles))
        categories = np.pad(known.item_categories, ((0, len(titles)), (0, 0)))
        self.catalogue: Catalogue = dataclasses.replace(
            known, titles=[*known.titles, *titles], raw_ids=[*known.raw_ids, *titles], item_categories=categories
        )
        self._trie = trie

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def answer_trie(self, task: str) -> CatalogueTrie:
        """The titles of all, those of before and the new ones."""
        del task
        return self._trie

    def text_states(self, task: str, model: Model) -> None:
        """None: those that are kept are of the titles before."""
        del task, model

    def fusion(self, task: str, fit: Callable[[], Fusion]) -> Fusion:
        """As it was fitted; of the new items the encoder knows nothing."""
        found = self._study.fusion(task, fit)
        return found._replace(untrained=[*found.untrained, *self._extra.tolist()])

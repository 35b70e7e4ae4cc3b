"""Items that came after the training: a run as its tasks see it, with more answers than it was trained for."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from user_llm.data.timelines import Catalogue
from user_llm.data.vocabularies import NameTokens
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.growing_trie import GrowingTrie
from user_llm.evaluation.fusion import Fusion
from user_llm.models.model import Model
from user_llm.tasks.base import Study


class Extensions:
    """A study with this and that extra title, each made of the one before where it only has more.

    Args:
      study: of a finished run.
    """

    def __init__(self, study: Study):
        self._study = study
        self._latest: tuple[tuple[str, ...], Study] = (), study
        self._tries: dict[tuple[str, ...], GrowingTrie] = {}  # of the catalogue, and with the latest extra titles

    def of(self, titles: tuple[str, ...]) -> Study:
        """The study with these titles, no two alike, none in the run's catalogue."""
        if titles != self._latest[0]:
            self._latest = titles, self._with(titles) if titles else self._study
        return self._latest[1]

    def _with(self, titles: tuple[str, ...]) -> Study:
        known, vocabulary = self._study.names.titles, self._study.vocabulary
        if not self._tries:
            self._tries[()] = GrowingTrie.build(known.tokens, known.lengths, vocabulary.eos_id)
        begun = max((before for before in self._tries if titles[: len(before)] == before), key=len)
        trie = self._tries[begun]
        if begun != titles:
            new = NameTokens(["", *titles[len(begun) :]], vocabulary, self._study.config.prompt.max_targets)
            trie = trie.add(new.tokens[1:], new.lengths[1:])
            self._tries = {(): self._tries[()], titles: trie}
        return WithExtraItems(self._study, titles, trie.trie)


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

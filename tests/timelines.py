"""Fixtures: hand-made timelines whose every event has its own item, so that an event seen anywhere can be traced."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from user_llm.builders.catalogue import unique_titles
from user_llm.columns import Texts
from user_llm.data.prompts import Names
from user_llm.data.timelines import Catalogue, TimelineTable
from user_llm.data.vocabularies import NameTokens, Vocabulary, load_vocabulary, train_sentencepiece

REVIEWS = ("Great!", "", "A quiet night, and glass: 日本. " * 3, "Two lines.\nThe second one.", "ok")
WORDS = ("Crimson", "Harbour", "of", "Glass", "Night", "Amélie", "2", "The", "日本")


def catalogue_of(titles, raw_ids, category_names, item_categories) -> Catalogue:
    """A catalogue from lists; an item's categories are a list of ids."""
    padded = np.zeros((len(titles), max(map(len, [*item_categories, [0]]))), np.int32)
    for item, ids in enumerate(item_categories):
        padded[item, : len(ids)] = ids
    return Catalogue(unique_titles(titles), raw_ids, category_names, padded)


def _make_table(lengths: Sequence[int]) -> TimelineTable:
    events = int(np.sum(lengths))
    random = np.random.default_rng(7)
    names = [" ".join(random.choice(WORDS, random.integers(1, 6))) for _ in range(events)]
    categories = [random.choice(np.arange(1, 4), random.integers(0, 4), replace=False).tolist() for _ in names]
    return TimelineTable(
        name="movielens/latest_small",
        item=np.arange(1, events + 1, dtype=np.int32),
        rating=random.integers(1, 11, events).astype(np.uint8),
        timestamp=np.arange(events, dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        user_ids=[f"user {user}" for user in range(len(lengths))],
        catalogue=catalogue_of(
            ["", *names], ["", *map(str, range(events))], ["", "Drama", "Comedy", "Film-Noir"], [[], *categories]
        ),
        rating_names=["", *(str(half / 2) for half in range(1, 11))],
        fingerprint="0" * 64,
        summary={},
        review_texts=Texts.of(REVIEWS[event % len(REVIEWS)] for event in range(events)),
    )


@pytest.fixture(scope="session")
def make_table() -> Callable[[Sequence[int]], TimelineTable]:
    """Builds a table from timeline lengths: the item of flat position p is p + 1."""
    return _make_table


@pytest.fixture(scope="session")
def table() -> TimelineTable:
    """Eight users, some too short for a window of five events."""
    return _make_table([9, 3, 6, 1, 14, 5, 7, 8])


@pytest.fixture(scope="session")
def make_names() -> Callable[..., Names]:
    """Builds the names of a table in tokens of a vocabulary, cut at `max_targets`."""

    def make(table: TimelineTable, vocabulary: Vocabulary, max_targets: int) -> Names:
        lists = (table.catalogue.titles, table.catalogue.category_names, table.rating_names)
        tokens = (NameTokens(names, vocabulary, max_targets) for names in lists)
        return Names(*tokens, table.catalogue.item_categories)

    return make


@pytest.fixture(scope="session")
def vocabulary(table: TimelineTable, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """A small vocabulary of the table's titles, in which characters unknown to it are spelt in bytes."""
    path: Path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    train_sentencepiece([title.replace("日本", "") for title in table.catalogue.titles], 300, path)
    return load_vocabulary(path)

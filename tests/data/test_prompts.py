from itertools import chain

import numpy as np
import pytest

from tests.timelines import catalogue_of
from user_llm.data.prompts import (
    Prompts,
    catalogue_documents,
    category_noun_of,
    noun_of,
    pack_left,
)
from user_llm.data.vocabularies import load_vocabulary, train_sentencepiece
from user_llm.tasks import TASKS

WORDINGS = [task.wording("movie", "genre") for task in TASKS]
WORDING = WORDINGS[0]


@pytest.fixture(scope="module")
def names(table, vocabulary, make_names):
    return make_names(table, vocabulary, 20)


def naive_prompt(vocabulary, titles, history, text_history, max_inputs):
    """One prompt in Python lists: drop the oldest event until the rest fits."""
    encode = vocabulary.encode
    events = [
        titles.tokens[item, : titles.lengths[item]].tolist() + encode(WORDING.separator)
        for item in history[-text_history:]
        if item
    ]
    for dropped in range(len(events) + 1):
        prompt = [1, *encode(WORDING.before), *chain(*events[dropped:]), *encode(WORDING.after[0].words)]
        if len(prompt) <= max_inputs:
            return prompt, dropped
    raise AssertionError("the words alone do not fit")


def test_words_change_with_their_version():
    """Runs and cached tasks are known by a wording's name: other words need another name here, and the next version."""
    review = ["Write a review for", "in the category", "with a rating of", "The review:"]
    assert {wording.name: wording.texts() for wording in WORDINGS} == {
        "next_item_v1": ["The user's next movie:", "The user's latest movies:", "|", "The next movie:"],
        "favorite_category_v1": ["The user's favorite genre:", "The user's latest movies:", "|", "The favorite genre:"],
        "review_generation_v1": [*review, "The user's latest movies:", "|", *review],
    }


def test_plain_prompt_is_bos_and_the_words(vocabulary, names):
    prompts = Prompts(names, WORDING, max_inputs=60)
    tokens, lengths, dropped = prompts.build(np.array([[0, 3], [1, 2]]))
    expected = [1, *vocabulary.encode("The user's next movie:")]
    assert tokens.tolist() == [expected, expected]
    assert lengths.tolist() == [len(expected)] * 2
    assert dropped.tolist() == [0, 0]
    assert prompts.length == len(expected)


@pytest.mark.parametrize("text_history", [1, 3, 6, 9])
@pytest.mark.parametrize("room", [0, 5, 17, 200])
def test_written_history_equals_the_definition(table, vocabulary, names, text_history, room):
    words = 1 + len(vocabulary.encode(WORDING.before)) + len(vocabulary.encode(WORDING.after[0].words))
    prompts = Prompts(names, WORDING, max_inputs=words + room, text_history=text_history)
    random = np.random.default_rng(text_history + room)
    history = random.integers(1, table.catalogue.num_items + 1, (40, 6))
    history[np.arange(6) < random.integers(0, 7, 40)[:, None]] = 0  # shorter ones, down to none at all
    tokens, lengths, dropped = prompts.build(history)
    assert tokens.shape == (40, prompts.length)
    for row, items in enumerate(history):
        expected, lost = naive_prompt(vocabulary, names.titles, items, text_history, words + room)
        assert tokens[row, : lengths[row]].tolist() == expected
        assert not tokens[row, lengths[row] :].any()
        assert dropped[row] == lost
    if room < 10:
        assert dropped.any()


def test_written_history_reads_well(table, vocabulary, names):
    prompts = Prompts(names, WORDING, max_inputs=200, text_history=2)
    tokens, _, _ = prompts.build(np.array([[5, 2, 9]]))
    names = table.catalogue.titles
    expected = f"The user's latest movies: {names[2]} | {names[9]} | The next movie:"
    assert vocabulary.decode_batch(tokens) == [expected]


@pytest.mark.parametrize("text_history", [0, 3])
@pytest.mark.parametrize("room", [0, 12])
def test_a_review_s_prompt_names_what_is_known_of_its_event(table, vocabulary, names, text_history, room):
    """Against Python lists: a piece whose value is unknown is left out, words and all."""
    wording = TASKS["review_generation"].wording("movie", "genre")
    items = np.arange(1, table.catalogue.num_items + 1)
    ratings = items % 4  # 0: not known
    categories = table.catalogue.item_categories[items, 0]
    assert (categories == 0).any()
    values = {"title": (names.titles, items), "category": (names.categories, categories)}
    values["rating"] = (names.ratings, ratings)
    values = {
        name: [table.tokens[i, : table.lengths[i]].tolist() for i in ids] for name, (table, ids) in values.items()
    }
    history = np.random.default_rng(1).integers(1, len(items), (len(items), 5))

    def pieces(row):
        for words, value in wording.after if text_history else wording.plain:
            if not value or values[value][row]:
                yield from vocabulary.encode(words)
                yield from values[value][row] if value else []

    longest = max(len(list(pieces(row))) for row in range(len(items)))
    before = [1, *(vocabulary.encode(wording.before) if text_history else [])]
    room = room if text_history else 0
    prompts = Prompts(names, wording, max_inputs=len(before) + longest + room + 30, text_history=text_history)
    tokens, lengths, dropped = prompts.build(history, items, ratings)
    assert tokens.shape == (len(items), prompts.length)
    for row in range(len(items)):
        after = list(pieces(row))
        events = [
            names.titles.tokens[item, : names.titles.lengths[item]].tolist() + vocabulary.encode("|")
            for item in history[row, len(history[row]) - text_history :]
        ]
        while len(before) + len(after) + sum(map(len, events)) > prompts.max_inputs:
            events.pop(0)
        assert tokens[row, : lengths[row]].tolist() == [*before, *chain(*events), *after]
        assert dropped[row] == text_history - len(events)


def test_a_review_s_prompt_reads_well(vocabulary, names, table):
    prompts = Prompts(names, TASKS["review_generation"].wording("movie", "genre"), max_inputs=100)
    known = np.flatnonzero(table.catalogue.item_categories[:, 0])[:1]
    tokens, lengths, _ = prompts.build(np.zeros((1, 4), int), known, np.array([10]))
    category = table.catalogue.category_names[table.catalogue.item_categories[known[0], 0]]
    (text,) = vocabulary.decode_batch(tokens, lengths)
    title = table.catalogue.titles[known[0]]
    assert text == f"Write a review for {title} in the category {category} with a rating of 5.0 The review:"


def test_prompts_that_cannot_fit_are_refused(names):
    with pytest.raises(ValueError, match=r"'next_item_v1' alone take \d+ tokens .* max_inputs=4"):
        Prompts(names, WORDING, max_inputs=4)
    with pytest.raises(ValueError, match=r"'next_item_v1' alone take \d+ tokens .* max_inputs=20"):
        Prompts(names, WORDING, max_inputs=20, text_history=1)
    with pytest.raises(ValueError, match="must not be negative"):
        Prompts(names, WORDING, max_inputs=60, text_history=-1)


@pytest.mark.parametrize("name", ["stories260K", "t5_spiece.model"])
def test_plain_prompt_fits_the_papers_32_tokens_with_public_vocabularies(shared_dir, table, make_names, name):
    vocabulary = load_vocabulary(shared_dir / "llm" / name)
    for wording in (WORDING, WORDINGS[1]):
        prompts = Prompts(make_names(table, vocabulary, 24), wording, max_inputs=32)
        tokens, _, _ = prompts.build(np.array([[3]]))
        assert (tokens[0, 0] == 1) == (vocabulary.bos_id == 1)  # T5 has no BOS


def test_plain_prompt_fits_32_tokens_with_a_vocabulary_of_its_own_catalogue(table, make_names, tmp_path):
    corpus = [*catalogue_documents(table.catalogue, "movie"), *WORDING.texts()]
    train_sentencepiece(corpus, 320, tmp_path / "model")
    Prompts(make_names(table, load_vocabulary(tmp_path / "model"), 24), WORDING, max_inputs=32)


def test_documents():
    catalogue = catalogue_of(
        ["", "Heat (1995)", "Clue (1985)", "Untagged"],
        ["", "6", "7", "8"],
        ["", "Action", "Crime"],
        [[], [1, 2], [2], []],
    )
    assert catalogue_documents(catalogue, "movie") == [
        "Heat (1995) is a movie. Categories: Action, Crime.",
        "Clue (1985) is a movie. Categories: Crime.",
        "Untagged is a movie.",
    ]


def test_nouns():
    assert noun_of("movielens/20m") == "movie"
    assert noun_of("another/one") == "item"
    assert (category_noun_of("movielens/20m"), category_noun_of("google_local/ohio")) == ("genre", "category")


def test_pack_left():
    tokens = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    valid = np.array([[False, True, True], [False, False, False], [True, False, True]])
    packed, counts = pack_left(tokens, valid, 4)
    assert packed.tolist() == [[2, 3, 0, 0], [0, 0, 0, 0], [7, 9, 0, 0]]
    assert counts.tolist() == [2, 0, 2]

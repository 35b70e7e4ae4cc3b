from itertools import chain

import numpy as np
import pytest

from user_llm.data.prompts import NextItemPrompts, catalogue_documents, next_item, noun_of, pack_left
from user_llm.data.timelines import Catalogue
from user_llm.data.vocabularies import TitleTokens, decode_batch, load_vocabulary, train_sentencepiece

WORDING = next_item("movie")


@pytest.fixture(scope="module")
def titles(table, vocabulary):
    return TitleTokens(table.catalogue, vocabulary, max_targets=20)


def naive_prompt(vocabulary, titles, history, text_history, max_inputs):
    """One prompt in Python lists: drop the oldest event until the rest fits."""
    encode = vocabulary.encode
    events = [
        titles.tokens[item, : titles.lengths[item]].tolist() + encode(WORDING.separator)
        for item in history[-text_history:]
        if item
    ]
    for dropped in range(len(events) + 1):
        prompt = [1, *encode(WORDING.before), *chain(*events[dropped:]), *encode(WORDING.after)]
        if len(prompt) <= max_inputs:
            return prompt, dropped
    raise AssertionError("the words alone do not fit")


def test_plain_prompt_is_bos_and_the_words(vocabulary, titles):
    prompts = NextItemPrompts(titles, WORDING, max_inputs=60)
    tokens, lengths, dropped = prompts.build(np.array([[0, 3], [1, 2]]))
    expected = [1, *vocabulary.encode("The user's next movie:")]
    assert tokens.tolist() == [expected, expected]
    assert lengths.tolist() == [len(expected)] * 2
    assert dropped.tolist() == [0, 0]
    assert prompts.length == len(expected)


@pytest.mark.parametrize("text_history", [1, 3, 6, 9])
@pytest.mark.parametrize("room", [0, 5, 17, 200])
def test_written_history_equals_the_definition(table, vocabulary, titles, text_history, room):
    words = 1 + len(vocabulary.encode(WORDING.before)) + len(vocabulary.encode(WORDING.after))
    prompts = NextItemPrompts(titles, WORDING, max_inputs=words + room, text_history=text_history)
    random = np.random.default_rng(text_history + room)
    history = random.integers(1, table.catalogue.num_items + 1, (40, 6))
    history[np.arange(6) < random.integers(0, 7, 40)[:, None]] = 0  # shorter ones, down to none at all
    tokens, lengths, dropped = prompts.build(history)
    assert tokens.shape == (40, prompts.length)
    for row, items in enumerate(history):
        expected, lost = naive_prompt(vocabulary, titles, items, text_history, words + room)
        assert tokens[row, : lengths[row]].tolist() == expected
        assert not tokens[row, lengths[row] :].any()
        assert dropped[row] == lost
    if room < 10:
        assert dropped.any()


def test_written_history_reads_well(table, vocabulary, titles):
    prompts = NextItemPrompts(titles, WORDING, max_inputs=200, text_history=2)
    tokens, _, _ = prompts.build(np.array([[5, 2, 9]]))
    names = table.catalogue.titles
    expected = f"The user's latest movies: {names[2]} | {names[9]} | The next movie:"
    assert decode_batch(vocabulary, tokens) == [expected]


def test_prompts_that_cannot_fit_are_refused(titles):
    with pytest.raises(ValueError, match=r"'next_item_v1' alone take \d+ tokens .* max_inputs=4"):
        NextItemPrompts(titles, WORDING, max_inputs=4)
    with pytest.raises(ValueError, match=r"'next_item_v1' alone take \d+ tokens .* max_inputs=20"):
        NextItemPrompts(titles, WORDING, max_inputs=20, text_history=1)
    with pytest.raises(ValueError, match="must not be negative"):
        NextItemPrompts(titles, WORDING, max_inputs=60, text_history=-1)


@pytest.mark.parametrize("name", ["stories260K", "t5_spiece.model"])
def test_plain_prompt_fits_the_papers_32_tokens_with_public_vocabularies(shared_dir, table, name):
    vocabulary = load_vocabulary(shared_dir / "llm" / name)
    prompts = NextItemPrompts(TitleTokens(table.catalogue, vocabulary, 24), WORDING, max_inputs=32)
    assert (prompts.plain[0] == 1) == (vocabulary.bos_id == 1)  # T5 has no BOS


def test_plain_prompt_fits_32_tokens_with_a_vocabulary_of_its_own_catalogue(table, tmp_path):
    corpus = [*catalogue_documents(table.catalogue, "movie"), WORDING.plain, WORDING.before, WORDING.after]
    train_sentencepiece(corpus, 320, tmp_path / "model")
    NextItemPrompts(TitleTokens(table.catalogue, load_vocabulary(tmp_path / "model"), 24), WORDING, max_inputs=32)


def test_documents():
    catalogue = Catalogue.build(
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


def test_pack_left():
    tokens = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    valid = np.array([[False, True, True], [False, False, False], [True, False, True]])
    packed, counts = pack_left(tokens, valid, 4)
    assert packed.tolist() == [[2, 3, 0, 0], [0, 0, 0, 0], [7, 9, 0, 0]]
    assert counts.tolist() == [2, 0, 2]

import dataclasses

import numpy as np
import pytest

from user_llm.columns import Texts
from user_llm.tasks.review_generation import ReviewAnswers

TEXTS = ("Great!", "", "日本 and 日本, quiet as glass.", "Two lines.\nThe second one.", "Amélie")


@pytest.fixture(scope="module")
def reviewed(table):
    return dataclasses.replace(table, review_texts=Texts.of(TEXTS))


@pytest.mark.parametrize("max_targets", range(2, 40))
def test_reviews_are_cut_at_whole_characters_and_end_in_eos(reviewed, vocabulary, max_targets):
    """At every width: what fits is whole, the rest is the longest beginning that tears no character."""
    answers = ReviewAnswers(reviewed, vocabulary, max_targets)
    label, tokens, lengths = answers.gather({}, np.arange(len(TEXTS)))
    assert label.tolist() == [0] * len(TEXTS)
    assert tokens.shape == (len(TEXTS), answers.width) == (len(TEXTS), max_targets)
    assert {label.dtype, tokens.dtype, lengths.dtype} == {np.dtype(np.int32)}
    for text, row, length, kept in zip(TEXTS, tokens, lengths, vocabulary.decode_batch(tokens), strict=True):
        full = vocabulary.encode(text)
        assert not row[length:].any()
        if not full:
            assert length == 0
            continue
        assert row[length - 1] == vocabulary.eos_id
        assert row[: length - 1].tolist() == full[: length - 1]
        if len(full) < max_targets:
            assert length == len(full) + 1
            continue
        starts = [size for size in range(1, max_targets) if text.startswith(vocabulary.decode(full[:size]))]
        assert length - 1 == max(starts, default=1)
        if starts:
            assert text.startswith(kept)


@pytest.mark.parametrize("max_targets", [2, 7, 20, 60])
def test_cut_reviews_are_counted(reviewed, vocabulary, max_targets):
    answers, events = ReviewAnswers(reviewed, vocabulary, max_targets), np.arange(len(TEXTS))
    assert answers.count_cut(events) == sum(len(vocabulary.encode(text)) + 1 > max_targets for text in TEXTS)


def test_no_event_has_no_answer(reviewed, vocabulary):
    label, tokens, lengths = ReviewAnswers(reviewed, vocabulary, 7).gather({}, np.arange(0))
    assert (label.shape, tokens.shape, lengths.shape) == ((0,), (0, 7), (0,))

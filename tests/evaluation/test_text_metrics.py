"""ROUGE against definitions worked out by hand, and against words counted in Python."""

from collections import Counter

import numpy as np
import pytest

from user_llm.evaluation.text_metrics import ROUGE, rouge


def test_a_pair_worked_out_by_hand():
    # Common: 4 of 5 words, the bigrams "the cat" and "on the", and the subsequence "the cat on the".
    scores = rouge(["the cat lay on the"], ["the cat sat on the mat"])
    assert scores["rouge1"] == pytest.approx([2 * (4 / 5) * (4 / 6) / (4 / 5 + 4 / 6)])
    assert scores["rouge2"] == pytest.approx([2 * (2 / 4) * (2 / 5) / (2 / 4 + 2 / 5)])
    assert scores["rougeL"] == scores["rouge1"] == scores["rougeLsum"]
    assert set(scores) == set(ROUGE)


def test_lines_are_sentences_of_lsum_only():
    scores = rouge(["it was good\nthe end"], ["the end\nit was good"])
    assert scores["rougeLsum"] == pytest.approx([1.0])
    assert scores["rougeL"][0] < 1


def test_unigrams_equal_a_count_of_words():
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(["five", "stars", "bad", "film"], random.integers(1, 8))) for _ in range(40)]
    predictions, references = texts[:20], texts[20:]
    found = rouge(predictions, references)["rouge1"]
    for value, prediction, reference in zip(found, predictions, references, strict=True):
        mine, theirs = Counter(prediction.split()), Counter(reference.split())
        assert value == pytest.approx(2 * (mine & theirs).total() / (mine.total() + theirs.total()))


def test_what_has_no_words_scores_nothing():
    scores = rouge(["", "\u975e\u5e38", "ok"], ["ok", "\u975e\u5e38", ""])
    assert all((values == 0).all() for values in scores.values())
    with pytest.raises(ValueError, match="zip"):
        rouge(["one"], ["one", "two"])

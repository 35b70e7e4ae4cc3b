"""Items to spell against the texts of windows, and two streams against each alone."""

import itertools

import numpy as np
import pytest

from user_llm.data.answers import TellingAnswers
from user_llm.data.pipeline import TrainBatches
from user_llm.data.prompts import Prompts
from user_llm.data.sources import UserLLMSource
from user_llm.data.spelling import OneAfterTheOther, Spelling
from user_llm.data.windows import Windows
from user_llm.tasks import TASKS
from user_llm.tasks.next_item import TitleAnswers

OPTIONS = {"threads": 1, "prefetch": 1}


@pytest.fixture(scope="module")
def texts(table, vocabulary, make_names):
    names = make_names(table, vocabulary, 12)
    prompts = Prompts(names, TASKS["next_item"].wording("movie", "genre"), max_inputs=24, text_history=0)
    windows = Windows(table, history_length=5, split="train", min_history=1, validation=True)
    return UserLLMSource(windows, prompts, TitleAnswers(table.catalogue.titles, names.titles))


def test_an_item_is_spelt_as_in_the_window_that_asks_for_it(texts):
    windows = texts.gather(np.arange(len(texts)))
    spelt = Spelling(texts, windows["label/item"]).gather(np.arange(len(texts)))
    assert not any(name.startswith("history/") for name in spelt)
    for name, values in spelt.items():
        np.testing.assert_array_equal(values, windows[name], err_msg=name)


def test_an_answer_that_tells_a_name_is_its_beginning(texts):
    rows = np.arange(len(texts))
    tokens = np.arange(len(texts.answers.names.lengths)) % 4  # of item 0 none, as of no other
    tokens[1:] = np.maximum(tokens[1:], 1)
    telling = UserLLMSource(texts.windows, texts.prompts, TellingAnswers(texts.answers, tokens))
    assert telling.length == texts.length - texts.answer_width + 3
    whole, found = texts.read(rows), telling.read(rows)
    for row, item in enumerate(found.label):
        asked, length = found.prompt_lengths[row], found.lengths[row]
        assert length == min(asked + tokens[item], whole.lengths[row])
        np.testing.assert_array_equal(found.tokens[row, :length], whole.tokens[row, :length])
        assert not found.tokens[row, length:].any()
    assert telling.references(rows) == texts.references(rows)


@pytest.mark.parametrize("start", [0, 2, 3, 5])
def test_one_stream_follows_the_other_from_any_step_on(texts, start):
    items = np.arange(1, 9)
    first, then = TrainBatches(Spelling(texts, items), 4, seed=1), TrainBatches(texts, 4, seed=1)
    both = OneAfterTheOther(first, then, 3)
    wanted = [first.batch(0), first.batch(1), first.batch(2), *(then.batch(step) for step in range(5))]
    for step, batch in enumerate(itertools.islice(both.iterator(start, **OPTIONS), 3), start=start):
        for found in (batch, both.whole_batch(step)):
            assert found.keys() == wanted[step].keys()
            for name, values in found.items():
                np.testing.assert_array_equal(values, wanted[step][name])

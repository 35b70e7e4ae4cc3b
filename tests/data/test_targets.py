"""Windows of several targets against the windows of one."""

import numpy as np
import pytest

from user_llm.data.prompts import Prompts
from user_llm.data.sources import UserLLMSource
from user_llm.data.targets import SeveralTargets
from user_llm.data.windows import Windows
from user_llm.tasks import TASKS
from user_llm.tasks.next_item import TitleAnswers

S = 5


@pytest.fixture(scope="module")
def parts(table, vocabulary, make_names):
    names = make_names(table, vocabulary, 12)
    prompts = Prompts(names, TASKS["next_item"].wording("movie", "genre"), max_inputs=24, text_history=0)
    return prompts, TitleAnswers(table.catalogue.titles, names.titles)


def windows(table, **options):
    return Windows(table, history_length=S, split="train", min_history=1, validation=True, **options)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_event_is_learnt_once_with_the_text_it_has_alone(table, parts, count):
    several = SeveralTargets(windows(table, stride=count), *parts, count)
    alone = UserLLMSource(windows(table), *parts)
    one = alone.gather(np.arange(len(alone)))
    text_of = {item: row for row, item in enumerate(one["label/item"])}  # every event has an item of its own
    batch = several.gather(np.arange(len(several)))
    seen = []
    for row, items in enumerate(batch["target/item"]):
        assert items[-1] == batch["label/item"][row]
        for text, item in enumerate(items):
            if not item:
                assert not batch["decoder_loss_weights"][row, text].any()
                continue
            seen.append(item)
            expected = text_of[item]
            for name in ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights", "prompt_tokens"):
                np.testing.assert_array_equal(batch[name][row, text], one[name][expected], err_msg=name)
            read = batch["history/item"][row, : S - count + text + 1]
            own = one["history/item"][expected]
            np.testing.assert_array_equal(read[read > 0], own[own > 0][-np.count_nonzero(read) :])
    assert sorted(seen) == sorted(one["label/item"])


def test_of_most_texts_the_first_token_alone_is_learnt(table, parts):
    several = SeveralTargets(windows(table, stride=4), *parts, 4)
    some = SeveralTargets(windows(table, stride=4), *parts, 4, whole_every=2)
    plain, batch = (source.gather(np.arange(len(several))) for source in (several, some))
    assert set(batch) - set(plain) == {name for name in batch if name.startswith("first/decoder_")} != set()
    width = batch["first/decoder_loss_weights"].shape[-1]
    for name, values in plain.items():
        if not name.startswith("decoder_"):
            np.testing.assert_array_equal(batch[name], values, err_msg=name)
            continue
        np.testing.assert_array_equal(batch[name], values[:, 1::2], err_msg=name)
        np.testing.assert_array_equal(batch[f"first/{name}"], values[:, ::2, :width], err_msg=name)
    learnt = batch["first/decoder_loss_weights"]
    np.testing.assert_array_equal(learnt.sum(axis=-1), plain["target/item"][:, ::2] > 0)
    rows, texts, places = np.nonzero(learnt)
    assert (places == batch["prompt_lengths"][:, ::2][rows, texts] - 1).all()
    of_label, alone = (source.newest(source.gather(np.arange(len(source)))) for source in (some, several))
    for name, values in alone.items():
        np.testing.assert_array_equal(of_label[name], values, err_msg=name)

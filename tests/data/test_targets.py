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

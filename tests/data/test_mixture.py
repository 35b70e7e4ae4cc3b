"""Several tasks in one stream: who is in a batch, how often, and what is read of each."""

import numpy as np
import pytest

from user_llm.data.mixture import MixedOrder, Mixture
from user_llm.data.pipeline import TrainBatches
from user_llm.data.prompts import Prompts
from user_llm.data.sources import UserLLMSource
from user_llm.data.windows import Windows
from user_llm.errors import UserError
from user_llm.tasks import TASKS
from user_llm.tasks.favorite_category import FavoriteCategoryAnswers
from user_llm.tasks.next_item import TitleAnswers
from user_llm.tasks.review_generation import ReviewAnswers

RATES = (2, 1, 1)


@pytest.fixture(scope="module")
def sources(table, vocabulary, make_names):
    names, catalogue = make_names(table, vocabulary, 9), table.catalogue
    answers = (
        TitleAnswers(catalogue.titles, names.titles),
        FavoriteCategoryAnswers(catalogue.category_names, names.categories, catalogue.item_categories),
        ReviewAnswers(table, vocabulary, 12),
    )
    windows = Windows(table, history_length=5, split="train", min_history=2)
    prompts = [Prompts(names, task.wording("movie", "genre"), max_inputs=120) for task in TASKS]
    return [UserLLMSource(windows, *parts) for parts in zip(prompts, answers, strict=True)]


def test_each_example_is_its_task_s_padded_to_one_shape(sources):
    mixture, size = Mixture(sources, RATES), len(sources[0])
    assert len(mixture) == 3 * size
    ids = np.random.default_rng(0).permutation(len(mixture))
    batch = mixture.gather(ids)
    assert len({source.length for source in sources}) > 1
    for row, example in enumerate(ids):
        task, window = divmod(int(example), size)
        own = sources[task].gather(np.array([window]))
        assert own.keys() == batch.keys()
        for name, values in own.items():
            found = batch[name][row]
            if values.ndim == 2 and not name.startswith("history/") and name != "decoder_positions":
                if name != "decoder_input_tokens":  # which, when wider, has the last token of the answer too
                    assert not found[values.shape[1] :].any()
                found = found[: values.shape[1]]
            if name != "decoder_positions":
                np.testing.assert_array_equal(found, values[0], err_msg=name)
    assert batch["decoder_positions"].tolist() == [list(range(mixture.length - 1))] * len(ids)
    # All that is learnt lies where `training.objectives` looks for an answer: right behind the prompt.
    last = batch["prompt_lengths"] - 1 + mixture.answer_width
    learnt = batch["decoder_loss_weights"] > 0
    places = np.arange(mixture.length - 1)
    assert not (learnt & ((places < batch["prompt_lengths"][:, None] - 1) | (places >= last[:, None]))).any()


def test_every_thousand_has_the_rates_and_every_task_its_whole_epochs():
    sizes = (300, 70, 11)
    order = MixedOrder((0, 300, 370), sizes, np.array(RATES) / 4, seed=3)
    ids = order.ids(np.arange(6000))
    task = np.searchsorted(np.cumsum(sizes), ids, side="right")
    for block in task.reshape(6, 1000):
        assert np.bincount(block).tolist() == [500, 250, 250]
    assert len({tuple(block) for block in task.reshape(6, 1000)}) == 6
    for index, size in enumerate(sizes):
        own = ids[task == index] - sum(sizes[:index])
        whole = own[: len(own) // size * size].reshape(-1, size)
        np.testing.assert_array_equal(np.sort(whole, axis=1), np.tile(np.arange(size), (len(whole), 1)))
        assert len(np.unique(whole, axis=0)) > 1


def test_rates_that_do_not_divide_a_thousand_still_sum_up():
    ids = MixedOrder((0, 50, 100), (50, 50, 50), np.full(3, 1 / 3), seed=0).ids(np.arange(3000))
    assert np.bincount(ids // 50).tolist() == [999, 1002, 999]


def test_a_batch_is_a_function_of_seed_and_step_wherever_reading_starts(sources):
    mixture = Mixture(sources, RATES)
    batches = [TrainBatches(mixture, 7, 5, order=mixture.order(5)) for _ in range(2)]
    there = [batches[0].ids(step).tolist() for step in range(300)]  # over the seam of two thousands
    assert [batches[1].ids(step).tolist() for step in reversed(range(300))] == there[::-1]
    other = TrainBatches(mixture, 7, 6, order=mixture.order(6))
    assert [other.ids(step).tolist() for step in range(300)] != there
    rows = np.array([2, 5])
    part = TrainBatches(mixture, 7, 5, order=mixture.order(5), rows=rows)
    assert [part.ids(step).tolist() for step in (0, 142, 143)] == [
        np.array(there[s])[rows].tolist() for s in (0, 142, 143)
    ]


def test_tasks_over_the_same_windows_ask_different_users_at_a_time(sources):
    mixture = Mixture(sources, (1, 1, 1))
    owners, windows = mixture.owners(mixture.order(0).ids(np.arange(30)))
    assert [windows[owners == 0].tolist()] != [windows[owners == 1].tolist()]


@pytest.mark.parametrize("rates", [(1, 1), (1, 1, 0), (1, -1, 1)])
def test_rates_that_leave_a_task_out_are_refused(sources, rates):
    with pytest.raises(UserError, match="expected 3 rates above 0"):
        Mixture(sources, rates)

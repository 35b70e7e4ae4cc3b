"""Which model reads whose history in which row, and which test users are in which table."""

from types import SimpleNamespace

import numpy as np
import pytest

from user_llm.errors import UserError
from user_llm.evaluation.evaluator import ShuffledContexts
from user_llm.evaluation.metrics import compare, summarise
from user_llm.tasks import favorite_category, review_generation
from user_llm.tasks.rows import LLM, SHUFFLED, TEXT_PROMPT, USER_LLM, llm_rows, protocols


def experiment(kind="cross_attention", min_history=2):
    return SimpleNamespace(
        config=SimpleNamespace(
            integration=SimpleNamespace(kind=kind),
            evaluation=SimpleNamespace(bootstrap_samples=50),
            seed=3,
            task="review_generation",
            data=SimpleNamespace(dataset="custom/quiet"),
        ),
        windows=lambda split: SimpleNamespace(min_history=min_history),
    )


def test_rows_differ_in_the_context_alone():
    test = object()
    plain, contextualised, shuffled = llm_rows(experiment(), test)
    assert plain == (LLM, test, False)
    assert contextualised == (USER_LLM, test, True)
    assert (shuffled.name, shuffled.with_context) == (SHUFFLED, True)
    assert isinstance(shuffled.source, ShuffledContexts)


def test_a_model_that_reads_no_events_has_one_row():
    test = object()
    assert llm_rows(experiment("none"), test) == [(TEXT_PROMPT, test, False)]


def rows_of(users):
    generator = np.random.default_rng(0)
    return {row: {"rougeLsum": generator.random(users), "rouge1": generator.random(users)} for row in ("ours", "base")}


def test_short_histories_are_in_the_first_table_and_out_of_the_paper_s():
    history = np.array([[0, 0, 5], [1, 2, 3], [0, 4, 4], [7, 8, 9], [1, 1, 1]])
    rows, full = rows_of(5), [1, 3, 4]
    compared = [("ours", "base"), ("ours", "untrained"), ("untrained", "base")]
    tables = protocols(experiment(), "next_item", history, rows, compared)
    assert list(tables) == ["all users with a history of 2 or more", "histories of 3 events (paper)"]
    for table, users in zip(tables.values(), (range(5), full), strict=True):
        chosen = {row: {name: column[list(users)] for name, column in row_.items()} for row, row_ in rows.items()}
        assert table["users"] == len(users)
        assert table["rows"] == {row: summarise(values, 50, 3) for row, values in chosen.items()}
        # Rows that were not trained are compared with nothing.
        assert table["comparisons"] == {"ours - base": compare(chosen["ours"], chosen["base"], 50, 3)}


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([[1, 2], [3, 4]], ["histories of 2 events (paper)"]),
        ([[0, 2], [0, 4]], ["all users with a history of 2 or more"]),
    ],
)
def test_no_table_is_printed_twice_or_over_nobody(history, expected):
    assert list(protocols(experiment(), "next_item", np.array(history), rows_of(2), [])) == expected


def test_nobody_to_test_is_said():
    with pytest.raises(UserError, match=r"no test user of custom/quiet has an answer for config\.task='review_gen"):
        protocols(experiment(), "review_generation", np.zeros((0, 5), int), {}, ())


@pytest.mark.parametrize("users", [1, 8, 30])
def test_samples_are_spread_evenly_and_each_text_is_in_its_column(users):
    columns = {
        name: [f"{name} {user}" for user in range(users)]
        for name in ("prompt", "truth", "personalised", "unpersonalised")
    }
    samples = review_generation._samples(*columns.values())
    chosen = [int(sample["prompt"].split()[1]) for sample in samples]
    assert len(chosen) == min(8, users)
    assert (chosen[0], chosen[-1]) == (0, users - 1)
    for user, sample in zip(chosen, samples, strict=True):
        assert sample == {name: texts[user] for name, texts in columns.items()}
    without = review_generation._samples(*list(columns.values())[:3], None)
    assert {sample["unpersonalised"] for sample in without} == {""}


@pytest.mark.parametrize("windows", [3, 8, 11])
def test_every_training_window_s_favorite_counts_once(windows):
    """The last batch is filled up with the first window, which is counted no more for that."""
    favorites = np.arange(windows) % 3  # 0: none

    class Source:
        def __len__(self):
            return windows

        def gather(self, ids):
            return {"label/answer": favorites[ids]}

    of = SimpleNamespace(
        source=lambda task, split: {"train": Source()}[split],
        catalogue=SimpleNamespace(category_names=["", "Drama", "Horror", "never"]),
        config=SimpleNamespace(evaluation=SimpleNamespace(batch_size=4)),
    )
    counts = favorite_category.FavoriteCategory()._favorite_counts(of)
    assert counts.tolist() == [favorites.tolist().count(category) for category in range(4)]

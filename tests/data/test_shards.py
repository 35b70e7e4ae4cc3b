"""Shards: a fixed number of parts of the users, so that the number of hosts does not change what is trained on."""

import itertools

import numpy as np
import pytest

from user_llm.data.favorites import FavoriteCategorySource
from user_llm.data.mixture import Mixture, train_batches
from user_llm.data.prompts import Prompts, catalogue_documents
from user_llm.data.sources import TextSource, UserLLMSource
from user_llm.data.windows import Windows
from user_llm.errors import UserError
from user_llm.tasks import TASKS
from user_llm.tasks.favorite_category import FavoriteCategoryAnswers
from user_llm.tasks.next_item import TitleAnswers

SHARDS, BATCH = 4, 8


@pytest.fixture(scope="module")
def users(make_table):
    return make_table(np.random.default_rng(3).integers(0, 30, 40))


@pytest.fixture(scope="module")
def sources(users, vocabulary, make_names):
    """Everything that is trained on, by what it is."""
    names, catalogue = make_names(users, vocabulary, 9), users.catalogue
    windows = Windows(users, history_length=5, split="train", min_history=2)
    answers = (
        TitleAnswers(catalogue.titles, names.titles),
        FavoriteCategoryAnswers(catalogue.category_names, names.categories, catalogue.item_categories),
    )
    asked = [
        UserLLMSource(windows, Prompts(names, task.wording("movie", "genre"), max_inputs=120), answer)
        for task, answer in zip(list(TASKS)[:2], answers, strict=True)
    ]
    return {
        "windows": windows,
        "favourites": FavoriteCategorySource(windows, catalogue.item_categories),
        "prompts": asked[0],
        "mixture": Mixture(asked, (2, 1)),
        "text": TextSource(catalogue_documents(catalogue, "movie"), asked[0], max_length=200),
    }


def host_rows(hosts):
    return np.arange(BATCH).reshape(hosts, -1)


@pytest.mark.parametrize("what", ["windows", "favourites", "prompts", "mixture", "text"])
def test_any_number_of_hosts_reads_the_same_batches(sources, what):
    source = sources[what]
    whole = train_batches(source, BATCH, 5, shards=SHARDS)
    wanted = [whole.ids(step) for step in range(30)]
    assert not np.array_equal(wanted[0], train_batches(source, BATCH, 6, shards=SHARDS).ids(0))
    for hosts in (1, 2, 4, 8):
        parts = [train_batches(source, BATCH, 5, rows=rows, shards=SHARDS) for rows in host_rows(hosts)]
        for step in reversed(range(30)):  # begun anywhere, as after a stop
            np.testing.assert_array_equal(np.concatenate([part.ids(step) for part in parts]), wanted[step])
    assert set(np.concatenate(wanted)) <= set(range(len(source)))


@pytest.mark.parametrize("what", ["windows", "prompts", "text"])
def test_a_shard_has_each_of_its_examples_once_an_epoch(sources, what):
    source, rows = sources[what], BATCH // SHARDS
    bounds = source.bounds(SHARDS)
    batches = train_batches(source, BATCH, 5, shards=SHARDS)
    for shard, (first, end) in enumerate(itertools.pairwise(bounds)):
        size = end - first
        mine = np.concatenate([batches.ids(step)[shard * rows : (shard + 1) * rows] for step in range(size)])
        epochs = mine.reshape(rows, size)  # as many epochs as rows
        np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(first, end), (rows, 1)))
        assert len(np.unique(epochs, axis=0)) == rows


def test_a_task_of_a_mixture_has_each_of_its_examples_once_an_epoch(sources):
    mixture, rows = sources["mixture"], BATCH // SHARDS
    batches = train_batches(mixture, BATCH, 5, shards=SHARDS)
    ids = np.stack([batches.ids(step) for step in range(4_000)])
    for shard in range(SHARDS):
        owners, own = mixture.owners(ids[:, shard * rows : (shard + 1) * rows].ravel())
        for task, source in enumerate(mixture.sources):
            first, end = source.bounds(SHARDS)[shard : shard + 2]
            seen = own[owners == task]
            whole = seen[: len(seen) // (end - first) * (end - first)].reshape(-1, end - first)
            assert len(whole) > 2
            np.testing.assert_array_equal(np.sort(whole, axis=1), np.tile(np.arange(first, end), (len(whole), 1)))


@pytest.mark.parametrize("what", ["windows", "mixture"])
@pytest.mark.parametrize("hosts", [2, 4])
def test_a_host_reads_its_own_users_only(sources, what, hosts):
    read = []
    for rows in host_rows(hosts):
        batches = train_batches(sources[what], BATCH, 5, rows=rows, shards=SHARDS)
        read.append(set(np.concatenate([batches.batch(step)["user"] for step in range(200)]).tolist()))
    everyone = set(sources["windows"].users(np.arange(len(sources["windows"]))).tolist())
    assert sum(map(len, read)) == len(everyone)
    assert set.union(*read) == everyone


def test_one_shard_is_one_order_of_all(sources):
    windows = sources["windows"]
    ids = np.concatenate([train_batches(windows, BATCH, 5).ids(step) for step in range(len(windows))])
    epochs = ids.reshape(BATCH, len(windows))
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(len(windows)), (BATCH, 1)))


@pytest.mark.parametrize(
    ("shards", "message"), [(3, "a batch of 8 rows: expected a multiple of the 3 shards"), (0, "1 shard or more")]
)
def test_shards_that_cannot_be_are_refused(sources, shards, message):
    with pytest.raises(UserError, match=message):
        train_batches(sources["windows"], BATCH, 0, shards=shards)

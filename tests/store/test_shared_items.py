"""What may be answered, as replicas change it together, against the same changes made one after the other."""

import concurrent.futures
import copy
import threading

import numpy as np
import pytest

from tests.user_models import made_up
from user_llm.answerable import AnswerableItems, Changes
from user_llm.errors import UserError
from user_llm.serving.catalogue_items import SharedItems
from user_llm.store.user_store import UserStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("user_model")


def fresh(model):
    """The same run as another process has it, of which nothing has changed yet."""
    other = copy.copy(model)
    other.items = AnswerableItems(model.catalogue, model.events.items)
    return other


@pytest.fixture
def stores(model, where):
    """Two replicas' stores in one place; a folder is opened once in a process."""
    first, second = fresh(model), fresh(model)
    with UserStore(first, where) as store:
        if "://" not in str(where):
            yield store, store.with_model(second)
            return
        with UserStore(second, where) as other:
            yield store, other


@pytest.fixture
def replicas(stores):
    return [SharedItems(store.model, store) for store in stores]


def titled(*titles):
    return [{"title": title} for title in titles]


def outcome(change, given):
    """What it returns, or the text of its error."""
    try:
        return change(given)
    except UserError as error:
        return str(error)


def test_random_changes_of_two_end_as_those_of_one(stores, replicas):
    random, alone = np.random.default_rng(0), fresh(stores[0].model).items
    titles = [*stores[0].model.catalogue.titles[1:20], *(f"Later {number}" for number in range(20))]
    for step in range(150):
        who, what = random.integers(2), random.choice(["add", "remove", "follow"], p=[0.4, 0.4, 0.2])
        some = [titles[index] for index in random.choice(len(titles), random.integers(1, 3), replace=False)]
        if what == "follow":
            newer = stores[who].model.items.version < alone.version
            assert replicas[who].follow() == newer, step
        else:
            given = titled(*some) if what == "add" else some
            wanted, found = (outcome(getattr(items, what), given) for items in (alone, replicas[who]))
            assert found == (wanted or alone.version), step
            if wanted:
                continue
        assert what == "follow" or stores[who].model.items.state == alone.state, step
    assert alone.version > 30
    for replica, store in zip(replicas, stores, strict=True):
        replica.follow()
        assert not replica.follow()
        assert store.model.items.state == alone.state == store.items()


def test_items_that_two_add_at_once_are_all_there(folder, where):
    models = made_up(folder), made_up(folder)
    meeting = threading.Barrier(2)
    with UserStore(models[0], where) as store:
        stores = store, store.with_model(models[1])

        def add(number):
            # Both have read the same state before either writes: the first try of one is in vain.
            waits = iter([meeting.wait])
            shared = SharedItems(models[number], stores[number], prepare=lambda _: next(waits, int)())
            return [shared.add(titled(f"{'XY'[number]} {item}")) for item in range(10)], shared

        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            done = list(threads.map(add, range(2)))
        assert sorted(version for versions, _ in done for version in versions) == [*range(1, 21)]
        for _, shared in done:
            shared.follow()
        assert models[0].items.state == models[1].items.state == store.items()
    wanted = {f"{name} {item}" for name in "XY" for item in range(10)}
    assert {*models[0].items.state.added} == wanted
    events = [{"item": title, "rating": 4.0} for title in models[0].catalogue.titles[3:6]]
    first, second = (model.recommend(events, 200, answers="exact") for model in models)
    assert first == second
    assert wanted <= {answer.text for answer in first}


def test_what_is_kept_of_items_is_no_user(stores, replicas, tmp_path):
    store = stores[0]
    assert (len(store), list(store.users())) == (0, [])
    assert store.items() == Changes()
    replicas[0].add(titled("Later 1"))
    assert (len(store), list(store.users()), store.refresh(), store.export(tmp_path / "users.parquet")) == (0, [], 0, 0)
    store.append("somebody", {"item": store.model.catalogue.titles[1], "rating": 4.0})
    assert (len(store), list(store.users())) == (1, ["somebody"])


def test_a_state_is_written_over_the_one_that_was_read_alone(stores):
    first, second = Changes(1, ("Later 1",), frozenset({"Glass 2"})), Changes(2, ("Later 1", "Later \ud800"))
    assert not stores[0].replace_items(first, second)
    assert stores[0].replace_items(Changes(), first)
    assert not stores[1].replace_items(Changes(), second)
    assert not stores[1].replace_items(first._replace(removed=frozenset()), second)
    assert stores[1].items() == first
    assert stores[1].replace_items(first, second)
    assert stores[0].items() == second


def test_changes_of_another_catalogue_are_refused(model, where):
    other = fresh(model)
    other.__dict__["fingerprints"] = (model.fingerprints[0], "1" * 64)
    with UserStore(other, where) as store:
        SharedItems(other, store).add(titled("Later 1"))
    mine = fresh(model)
    with UserStore(mine, where) as store:
        shared = SharedItems(mine, store)
        for use in (
            store.items,
            lambda: store.replace_items(Changes(), Changes(1)),
            shared.follow,
            lambda: shared.add(titled("Later 2")),
        ):
            with pytest.raises(UserError, match="changes of items are of another catalogue"):
                use()
    assert mine.items.state == Changes()


def test_a_store_that_was_put_back_gets_the_newer_state_again(stores, replicas):
    replicas[0].add(titled("Later 1"))
    replicas[1].follow()
    before = stores[0].items()
    replicas[0].add(titled("Later 2"))
    assert stores[0].replace_items(stores[0].items(), before)  # a copy of yesterday
    assert not replicas[0].follow()
    assert stores[0].model.items.state.added == ("Later 1", "Later 2")
    assert replicas[0].add(titled("Later 3")) == 3
    assert replicas[1].follow()
    assert stores[1].model.items.state.added == ("Later 1", "Later 2", "Later 3")


def test_without_a_store_only_here(model):
    alone = fresh(model)
    shared = SharedItems(alone, None)
    assert shared.add(titled("Later 1", "Later 2")) == 1
    assert shared.remove([model.catalogue.titles[5]]) == 2
    assert not shared.follow()
    assert alone.items.state == Changes(2, ("Later 1", "Later 2"), frozenset({model.catalogue.titles[5]}))
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        versions = list(threads.map(lambda number: shared.add(titled(f"Thread {number}")), range(40)))
    assert sorted(versions) == [*range(3, 43)]
    assert len(alone.items.state.added) == 42


def test_a_change_is_prepared_before_anybody_sees_it(stores):
    prepared, (mine, theirs) = [], stores

    def prepare(changes):
        prepared.append(changes)
        assert mine.model.items.version < changes.version
        assert "Later 3" not in changes.added, "too long for this trie"

    shared, other = SharedItems(mine.model, mine, prepare=prepare), SharedItems(theirs.model, theirs)
    shared.add(titled("Later 1"))
    other.add(titled("Later 2"))
    assert shared.follow()
    assert prepared == [Changes(1, ("Later 1",)), Changes(2, ("Later 1", "Later 2"))]
    with pytest.raises(AssertionError, match="too long"):
        shared.add(titled("Later 3"))
    assert mine.items() == mine.model.items.state == prepared[1]

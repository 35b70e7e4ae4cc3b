"""Users that are kept against users that are encoded anew."""

import copy

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.user_models import HISTORY
from user_llm.errors import UserError
from user_llm.store.user_store import UserStore


@pytest.fixture(scope="module")
def users(model):
    """Events of 70 users, more than a batch: from one to twice as many as are read."""
    random, titles = np.random.default_rng(0), model.catalogue.titles[1:]
    return {
        f"user {number}": [
            {"item": titles[item], "rating": float(rating)}
            for item, rating in zip(random.integers(0, len(titles), size), random.integers(1, 6, size), strict=True)
        ]
        for number, size in enumerate(random.integers(1, 2 * HISTORY, 70))
    }


def records(store, users):
    return store._engine.get_many([user.encode() for user in users])


def of_another_encoder(model, **fingerprint):
    """The same run with other parameters, or as if it had another catalogue."""
    other = copy.copy(model)
    if "encoder" in fingerprint:
        other.contextualised = model.contextualised.with_parameters(
            {path: -x if "final_norm" in path else x for path, x in model.contextualised.parameters.items()}
        )
    encoder, catalogue = model.fingerprints
    found = {"encoder": encoder, "catalogue": catalogue, **fingerprint}
    other.__dict__["fingerprints"] = (found["encoder"], found["catalogue"])
    return other


def test_kept_users_are_those_that_were_encoded(store, model, users):
    store.put(users)
    names = list(users)[::-1]
    kept, made = store.get_many(names), model.encode([users[name] for name in names])
    np.testing.assert_allclose(kept.embeddings, made.embeddings, atol=1e-5)  # in batches of other sizes
    for name in ("items", "mask", "query", "encoder", "catalogue"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(made, name), err_msg=name)
    assert len(store) == 70
    assert set(store.users()) == set(users)
    alone = model.recommend([users[name] for name in names[:3]], 4)
    for found, wanted in zip(model.recommend(kept[:3], 4), alone, strict=True):
        assert [answer.text for answer in found] == [answer.text for answer in wanted]


def test_an_event_that_is_added_is_as_if_all_were_encoded_anew(store, model, users):
    store.put(users)
    whole = records(store, users)
    store.delete(list(users))
    assert len(store) == 0
    for at in range(3):  # the first event alone, the second, then the rest at once
        part = slice(at, at + 1) if at < 2 else slice(2, None)
        store.append_many({user: events[part] for user, events in users.items()})
    for name, found, wanted in zip(users, records(store, users), whole, strict=True):
        assert found == wanted, name
    store.append("somebody new", users["user 0"][0])
    assert len(store.get_many(["somebody new"])) == 1


def test_who_is_not_there_is_told_or_empty(store, model, users):
    store.put({"user 0": users["user 0"]})
    with pytest.raises(UserError, match="the store has no user 'nobody' \\(1 of 2 are not there\\)"):
        store.get_many(["user 0", "nobody"])
    kept = store.get_many(["nobody", "user 0"], missing="empty")
    found = model.recommend(kept, 2)
    assert found[0] == []
    assert len(found[1]) == 2
    assert store.delete(["user 0", "nobody"]) == 1


def test_users_of_another_encoder_are_refused_until_they_are_refreshed(model, where, users):
    before = of_another_encoder(model, encoder="0" * 64)
    with UserStore(before, where) as old:
        old.put(users)
    with UserStore(model, where) as store:
        store.put({"user 3": users["user 3"]})
        with pytest.raises(UserError, match=r"'user 1' was written with another encoder \(2 of 3 were\)"):
            store.get_many(["user 3", "user 1", "user 2"])
        with pytest.raises(UserError, match="'user 1' was written with another encoder"):
            store.append("user 1", users["user 1"][0])
        assert store.refresh() == 69
        assert store.refresh() == 0
        names = list(users)
        kept, made = store.get_many(names), model.encode(list(users.values()))
        np.testing.assert_allclose(kept.embeddings, made.embeddings, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_users_of_another_encoder_may_be_encoded_as_they_are_read(model, where, users, dtype):
    with UserStore(of_another_encoder(model, encoder="0" * 64), where, dtype=dtype) as old:
        old.put(users)
    with UserStore(model, where) as store:
        store.put({"user 3": users["user 3"]})
        names = [*users, "nobody"]
        before = records(store, users)
        read = store.get_many(names, missing="empty", stale="encode")
        assert records(store, users) == before  # who serves the other model finds its own
        assert store.refresh() == 69
        wanted = store.get_many(names, missing="empty")
    assert np.abs(wanted.embeddings[:-1]).max() > 0
    np.testing.assert_allclose(read.embeddings, wanted.embeddings, atol=1e-5 if dtype == "float32" else 0.02)
    for name in ("items", "mask", "query", "encoder", "catalogue"):
        np.testing.assert_array_equal(getattr(read, name), getattr(wanted, name), err_msg=name)


def test_two_models_of_one_store_append_to_the_same_users(model, where, users):
    other = of_another_encoder(model, encoder="0" * 64)
    some = {name: users[name] for name in list(users)[:9]}
    with UserStore(model, where) as store:
        theirs = store.with_model(other)  # a folder is opened once in a process
        for index in range(HISTORY + 1):  # by turns, until no event of the first is left
            (store, theirs)[index % 2].append_many(
                {name: events[index : index + 1] for name, events in some.items()}, stale="encode"
            )
        theirs.append("user 0", users["user 1"][0], stale="encode")
        with pytest.raises(UserError, match="written with another encoder"):
            store.get_many(["user 0"])
        store.append("user 0", users["user 1"][1], stale="encode")
        kept = store.get_many(list(some), stale="encode")
        timelines = [events[: HISTORY + 1] for events in some.values()]
        timelines[0] = [*timelines[0], *users["user 1"][:2]]
        made = model.encode(timelines)
        np.testing.assert_array_equal(kept.items, made.items)
        np.testing.assert_allclose(kept.embeddings, made.embeddings, atol=1e-5)
        assert len(store.get_many(["user 0"])) == 1


def test_ratings_of_another_scale_are_refused(model, where, users):
    UserStore(model, where).close()
    other = copy.copy(model)
    other.events = copy.copy(model.events)
    other.events.ratings = {rating * 2: index for rating, index in model.events.ratings.items()}
    with pytest.raises(UserError, match="holds records of another shape"):
        UserStore(other, where)
    with UserStore(model, where) as store, pytest.raises(UserError, match="holds records of another shape"):
        store.with_model(other)


def test_a_wrong_event_among_many_leaves_all_as_they_were(store, users):
    wrong = {**users, "user 69": [*users["user 69"], {"item": "Nothing", "rating": 4.0}]}
    with pytest.raises(UserError, match=r"user user 69, event \d+: 'Nothing' is no title"):
        store.append_many(wrong)
    assert len(store) == 0


def test_events_that_are_not_known_may_be_left_out(store, users):
    store.put({"a": users["user 0"]})
    store.put({"b": [*users["user 0"], {"item": "Nothing", "rating": 4.0}]}, unknown="skip")
    (one,), (other,) = records(store, ["a"]), records(store, ["b"])
    assert one == other
    with pytest.raises(UserError, match="unknown must be 'error' or 'skip'"):
        store.put({"b": users["user 0"]}, unknown="drop")


def test_a_store_that_is_only_read_is_not_made(model, where):
    with pytest.raises(UserError, match="is no store: user-llm embed"):
        UserStore(model, where, create=False)


def test_users_of_another_catalogue_are_refused(model, where, users):
    with UserStore(of_another_encoder(model, catalogue="1" * 64), where) as old:
        old.put({"user 1": users["user 1"]})
    with UserStore(model, where) as store:
        for use in (
            lambda: store.get_many(["user 1"]),
            lambda: store.get_many(["user 1"], stale="encode"),
            lambda: store.append("user 1", users["user 1"][0], stale="encode"),
            store.refresh,
        ):
            with pytest.raises(UserError, match="events are of another catalogue"):
                use()


def test_vectors_may_be_kept_in_half_the_room(model, where, users, tmp_path):
    with UserStore(model, where, dtype="bfloat16") as store:
        store.put(users)
        kept, made = store.get_many(list(users)), model.encode(list(users.values()))
        np.testing.assert_allclose(kept.embeddings, made.embeddings, rtol=1e-2, atol=1e-2)
        assert np.abs(kept.embeddings - made.embeddings).max() > 0
    with pytest.raises(UserError, match="holds records of another shape"):
        UserStore(model, where, dtype="float32")
    with UserStore(model, where) as store:
        assert len(store) == 70


def test_what_was_deleted_is_nowhere_on_disk(model, tmp_path, users):
    with UserStore(model, tmp_path / "store") as store:
        store.put(users)
        (record,) = records(store, ["user 5"])
        store.delete(["user 5"])
        before = (tmp_path / "store" / "data.mdb").stat().st_size
        store.delete([f"user {number}" for number in range(6, 60)])
        store.compact()
        left = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
        assert b"user 5\0" not in left
        assert record not in left
        assert len(left) < before
        assert set(store.users()) == {user for number, user in enumerate(users) if not 5 <= number < 60}
        store.append("user 1", users["user 1"][0])


def test_all_users_are_exported(store, model, users, tmp_path):
    store.put(users)
    assert store.export(tmp_path / "users.parquet") == 70
    rows = {row["user"]: row for row in pq.read_table(tmp_path / "users.parquet").to_pylist()}
    ids = dict(zip(model.catalogue.titles, model.catalogue.raw_ids, strict=True))
    for user, events in users.items():
        assert rows[user]["items"] == [ids[event["item"]] for event in events][-HISTORY:]
        kept = store.get_many([user])
        np.testing.assert_array_equal(rows[user]["embeddings"], kept.embeddings[kept.mask])


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda store: store.get_many([""]), "a user is named by a text, got ''"),
        (lambda store: store.get_many([3]), "a user is named by a text, got 3"),
        (lambda store: store.get_many(["\ud800"]), "holds half a character"),
        (lambda store: store.put({"a\0b": []}), "a user is named by a text"),
        (lambda store: store.put({"a": []}), "user a, events must be a list of at least one event"),
        (lambda store: store.append("a", {"item": "Nothing", "rating": 4.0}), "user a, event 0: 'Nothing' is no title"),
        (lambda store: store.get_many(["a"], missing="skip"), "missing must be 'error' or 'empty'"),
        (lambda store: store.get_many(["a"], stale="skip"), "stale must be 'error' or 'encode', got 'skip'"),
        (lambda store: store.append("a", stale="empty"), "stale must be 'error' or 'encode', got 'empty'"),
        (lambda store: UserStore(store.model, "x", dtype="int8"), "dtype must be one of float32, bfloat16"),
    ],
)
def test_what_cannot_be_is_told(store, use, message):
    with pytest.raises(UserError, match=message):
        use(store)


def test_a_name_too_long_for_the_database_is_told(model, tmp_path, users):
    with UserStore(model, tmp_path) as store, pytest.raises(UserError, match="a name may have 511 bytes"):
        store.put({"x" * 512: users["user 0"]})


def test_embeddings_of_a_moment_are_not_kept(model, tmp_path):
    asked = copy.copy(model)
    asked.events = copy.copy(model.events)
    asked.events.config = copy.deepcopy(model.config)
    asked.events.config.encoder.time = "asked"
    with pytest.raises(UserError, match="makes embeddings of one moment"):
        UserStore(asked, tmp_path)
    with UserStore(model, tmp_path) as store, pytest.raises(UserError, match="makes embeddings of one moment"):
        store.with_model(asked)


def test_who_cannot_be_brought_up_to_date_spoils_nobody_else(model, where, users):
    strange = of_another_encoder(model, catalogue="0" * 64)
    with UserStore(strange, where) as store:
        store.put({"user 0": users["user 0"]})
    with UserStore(model, where) as store:
        refused = {}
        store.append_many({name: users[name] for name in ("user 1", "user 0", "user 2")}, refused=refused)
        assert [*refused] == ["user 0"]
        assert "of another catalogue" in str(refused["user 0"])
        assert [*store.get_many(["user 1", "user 2"]).items[:, -1]] == [
            model.events.items[users[name][-1]["item"]] for name in ("user 1", "user 2")
        ]

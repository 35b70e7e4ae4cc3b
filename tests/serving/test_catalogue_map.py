"""The map of items against NumPy's eigenvectors of their covariance."""

import copy
import dataclasses

import numpy as np
import pytest

from tests.user_models import HISTORY, ITEMS, _lively, made_up
from user_llm.errors import UserError
from user_llm.models import sharding
from user_llm.serving import catalogue_map
from user_llm.serving.catalogue_map import CatalogueMap


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return made_up(tmp_path_factory.mktemp("user_model"))


def with_encoder(model, **sections):
    """The same run with another encoder, of which nobody has trained anything."""
    config = copy.deepcopy(model.config)
    for section, values in sections.items():
        config[section].update(values)
    assembly = dataclasses.replace(model.study.assembly, config=config)
    other = copy.copy(model)
    other.contextualised = _lively(assembly.user_llm, model.catalogue.item_categories)
    return other


def by_hand(vectors, shown):
    """All items' places `[I + 1, 2]`."""
    some = vectors[shown].astype(np.float64)
    middle = sum(some) / len(some)
    covariance = sum(np.outer(vector - middle, vector - middle) for vector in some)
    _, axes = np.linalg.eigh(covariance)
    places = np.zeros((len(vectors), 2))
    for column, axis in enumerate((axes[:, -1], axes[:, -2])):
        axis = axis if axis[np.argmax(np.abs(axis))] > 0 else -axis
        places[:, column] = [(vector - middle) @ axis for vector in vectors]
    return places / np.abs(places[shown]).max()


def table(model, path):
    return np.asarray(model.contextualised.parameters[f"encoder/{path}"])


def test_all_items_lie_where_the_covariance_says(model):
    found = CatalogueMap(model).points()
    shown = np.arange(1, ITEMS + 1)
    wanted = by_hand(table(model, "embedding/item_VU"), shown)
    np.testing.assert_allclose(found["points"], wanted[shown], atol=1.1e-4)
    assert np.abs(found["points"]).max() == 1
    assert found["titles"] == list(model.catalogue.titles[1:])
    names = model.catalogue.category_names[1:]
    assert [names[index] for index in found["categories"]] == [f"Genre {item % 6}" for item in range(ITEMS)]
    assert CatalogueMap(model).points() == found


def test_rows_behind_the_items_are_no_points(model, monkeypatch):
    monkeypatch.setattr(sharding, "LARGE", ITEMS)
    padded, shown = with_encoder(model), np.arange(1, ITEMS + 1)
    vectors = table(padded, "embedding/item_VU")
    assert vectors[ITEMS + 1 :].any()
    wanted = by_hand(vectors[: ITEMS + 1], shown)[shown]
    np.testing.assert_allclose(CatalogueMap(padded).points()["points"], wanted, atol=1.1e-4)


def test_a_large_catalogue_is_shown_in_part(model, monkeypatch):
    monkeypatch.setattr(catalogue_map, "MOST", 40)
    world = CatalogueMap(model)
    found, titles = world.points(), list(model.catalogue.titles)
    shown = np.array([titles.index(title) for title in found["titles"]])
    assert (len(shown), shown[0], shown[-1]) == (40, 1, ITEMS)
    assert {*np.diff(shown)} == {3, 4}
    wanted = by_hand(table(model, "embedding/item_VU"), shown)
    np.testing.assert_allclose(found["points"], wanted[shown], atol=1.1e-4)
    hidden = next(item for item in range(1, ITEMS) if item not in shown)
    place = world.place(model.encode([{"item": titles[hidden], "rating": 4.0}]))
    np.testing.assert_allclose(place, wanted[hidden], atol=1e-4)


def test_a_user_stands_amid_the_kept_items(model):
    world, titles = CatalogueMap(model), list(model.catalogue.titles)
    items = [5, 90, 17, 5, 44, 61]
    events = [{"item": titles[item], "rating": 4.0} for item in items]
    wanted = by_hand(table(model, "embedding/item_VU"), np.arange(1, ITEMS + 1))
    for count in range(1, len(items) + 1):
        place = world.place(model.encode(events[:count]))
        np.testing.assert_allclose(place, wanted[items[:count][-HISTORY:]].mean(axis=0), atol=1e-4)
    assert world.place(model.encode([{"item": "Nothing", "rating": 4.0}], unknown="skip")) == (0, 0)
    theirs = dataclasses.replace(model.encode(events), encoder="0" * 64)
    with pytest.raises(UserError, match="made with another encoder"):
        world.place(theirs)


def test_the_table_is_found_in_every_encoder(model):
    shown = np.arange(1, ITEMS + 1)
    two_towers = with_encoder(model, encoder=dict(kind="dual_encoder"))
    wanted = by_hand(table(two_towers, "user_tower/embedding/item_VU"), shown)[shown]
    np.testing.assert_allclose(CatalogueMap(two_towers).points()["points"], wanted, atol=1.1e-4)
    named = with_encoder(model, encoder=dict(item_text=True))
    vectors = table(named, "embedding/item_VU") + table(named, "embedding/item_text_IE") @ table(
        named, "embedding/text_EU"
    )
    np.testing.assert_allclose(CatalogueMap(named).points()["points"], by_hand(vectors, shown)[shown], atol=2e-4)


@pytest.mark.parametrize(
    "sections",
    [
        dict(integration=dict(kind="none")),
        dict(encoder=dict(kind="dual_encoder", features=("category",))),
    ],
)
def test_a_run_without_item_embeddings_has_no_map(model, sections):
    world = CatalogueMap(with_encoder(model, **sections))  # of which all else can be served
    for use in (world.points, lambda: world.place(model.encode([{"item": "Nothing", "rating": 4.0}], unknown="skip"))):
        with pytest.raises(UserError, match="reads no item embeddings: a map needs a run with an encoder of items"):
            use()


@pytest.mark.parametrize(("count", "width"), [(1, 4), (2, 4), (5, 1), (3, 3)])
def test_few_items_have_a_plane_too(count, width):
    vectors = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    axes, middle = catalogue_map._plane(vectors)
    assert axes.shape == (2, width)
    assert np.isfinite((vectors - middle) @ axes.T).all()

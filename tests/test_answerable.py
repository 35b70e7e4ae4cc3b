"""Items that come and go while a run is asked."""

import pytest

from tests.user_models import ITEMS, made_up
from user_llm.errors import UserError
from user_llm.evaluation import evaluator

LATER = ["The Crimson Harbour (2031)", "A Night of Glass (2032)", "Glass"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("user_model")


@pytest.fixture
def model(folder):
    return made_up(folder)


def events_of(model):
    return [{"item": title, "rating": 4.0} for title in model.catalogue.titles[3:6]]


def scores_of(answers):
    return {answer.text: answer.score for answer in answers}


@pytest.mark.parametrize("answers", ["beams", "exact"])
def test_what_comes_is_answered_and_what_goes_is_not(model, folder, answers):
    events, ask = events_of(model), {"k": 80 if answers == "beams" else 2 * ITEMS, "answers": answers}
    before = scores_of(model.recommend(events, **ask))
    for title in LATER:
        model.items.add([{"title": title}])
    gone = [max(before, key=before.__getitem__), LATER[1]]
    model.items.remove(gone)
    assert model.items.version == 4
    found = scores_of(model.recommend(events, **ask))
    assert not {*gone} & {*found}
    # The same of a run that is asked for all of it at once.
    other, extra = made_up(folder), [{"title": title} for title in LATER]
    wanted = scores_of(other.recommend(events, extra_items=extra, exclude=gone, **ask))
    assert {*found} == {*wanted}
    assert found == pytest.approx(wanted, abs=1e-4)
    if answers == "exact":
        assert {LATER[0], LATER[2]} <= {*found}
    assert model.answer(events, "next_item", 3) == model.recommend(events, 3)
    model.items.add([{"title": gone[0]}])
    assert gone[0] in scores_of(model.recommend(events, **ask))


def test_a_change_compiles_nothing(model):
    events = events_of(model)
    model.items.add([{"title": LATER[0]}])
    model.items.remove([LATER[0]])
    model.recommend(events)
    compiled = evaluator._beams._cache_size()
    model.items.add([{"title": LATER[1]}, {"title": LATER[0]}])
    model.items.remove([model.catalogue.titles[9]])
    model.recommend(events, exclude=[LATER[1]])
    model.recommend(events, extra_items=[{"title": LATER[2]}])
    assert evaluator._beams._cache_size() == compiled + 1  # exclude= is another width of what is closed
    model.recommend(events, exclude=[model.catalogue.titles[12]])
    assert evaluator._beams._cache_size() == compiled + 1


def test_wrong_changes_are_refused_and_change_nothing(model):
    model.items.add([{"title": LATER[0]}])
    for wrong, message in (
        ([{"title": LATER[1]}, {"title": " "}], "extra item 1: expected"),
        ([{"title": LATER[1]}, {"title": "half \ud800"}], "extra item 1: expected"),
        ([{"title": LATER[1]}, {"title": LATER[1]}], "extra item 1: .* given twice"),
        ([{"title": LATER[1]}, {"title": model.catalogue.titles[1]}], "extra item 1: .* is a title of the catalogue"),
        ([{"title": LATER[0]}], "extra item 0: .* is a title of the catalogue"),
    ):
        with pytest.raises(UserError, match=message):
            model.items.add(wrong)
    with pytest.raises(UserError, match="'Nothing' is no title"):
        model.items.remove([model.catalogue.titles[1], "Nothing"])
    model.items.remove([LATER[0]])
    with pytest.raises(UserError, match="was removed before"):
        model.items.remove([LATER[0]])
    with pytest.raises(UserError, match="no item would be left"):
        model.items.remove(model.catalogue.titles[1:])
    assert model.items.version == 2


def test_a_whole_state_is_taken_over_forward_only(model, folder):
    other = made_up(folder)
    assert not other.items.follow(model.items.state)
    model.items.add([{"title": LATER[0]}, {"title": LATER[1]}])
    early = model.items.state
    model.items.remove([LATER[1], model.catalogue.titles[7]])
    assert other.items.follow(model.items.state)
    assert not other.items.follow(early)
    assert not other.items.follow(model.items.state)
    assert other.items.state == model.items.state
    events = events_of(model)
    assert other.recommend(events, 80) == model.recommend(events, 80)

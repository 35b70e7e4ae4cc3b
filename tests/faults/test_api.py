"""Wrong arguments from Python: each is refused by its name, and what looks odd but is right is taken."""

import math
from collections import deque
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import user_llm
from tests.user_models import HISTORY, made_up
from user_llm.api import TextModel
from user_llm.data.splits import resolve_min_history
from user_llm.errors import UserError

TITLE = "Harbour 1"
EVENT = {"item": TITLE, "rating": 4.0}
FULL = 512  # tokens that the language model reads


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`users`, a `UserModel`, and `text`, its language model alone."""
    users = made_up(tmp_path_factory.mktemp("user_model"))
    return SimpleNamespace(users=users, text=TextModel(users.contextualised.module().language_model, users.tokenizer))


def recommend(events, k=3):
    return lambda models: models.users.recommend(events, k)


def rated(rating):
    return recommend([EVENT, {"item": TITLE, "rating": rating}])


def answer(**options):
    return lambda models: models.users.answer(**{"events": [EVENT], "k": 2} | options)


def logits(token_ids):
    return lambda models: models.text.logits(token_ids)


def write(prompt, new=2, **options):
    return lambda models: models.text.generate(prompt, new, **options)


EVENTS = 'events must be a list of at least one event, {"item": title, "rating": number}, got '
AN_EVENT = 'expected {"item": title, "rating": number}, got '
RATINGS = "expected one of 0.5, 1, 1.5"
A_K = "k must be a whole number of at least 1, got "
SEED = "seed must be a whole number from 0 to 4294967295, got "
NEW = "max_new_tokens must be a whole number of at least 1, got "
DEGREES = "temperature must be 0 (greedy) or a number of at least 1e-06, got "
SHAPE = "token_ids must be [batch, tokens], got shape "
WHOLE = "token_ids must be whole numbers, got an array of "

REFUSED = {
    "g6_none": (recommend(None), EVENTS + "None"),
    "g6_gen": (lambda models: models.users.recommend(event for event in [EVENT]), EVENTS + "<generator"),
    "g6_str_events": (recommend(TITLE), EVENTS + "'Harbour 1'"),
    "bytes as events": (recommend(b"Harbour"), EVENTS),
    "g6_dict": (recommend(EVENT), EVENTS + "{"),
    "a set of events": (recommend({1, 2}), EVENTS),
    "no event": (recommend([]), EVENTS + "[]"),
    "a number as events": (recommend(5), EVENTS + "5"),
    "g6_list_of_str": (recommend([TITLE]), "event 0: " + AN_EVENT + "'Harbour 1'"),
    "the second event is None": (recommend([EVENT, None]), "event 1: " + AN_EVENT + "None"),
    "an event as a pair": (recommend([EVENT, (TITLE, 4.0)]), "event 1: " + AN_EVENT),
    "an event without item": (recommend([{"title": TITLE, "rating": 4}]), "event 0: " + AN_EVENT + "{'rating'"),
    "a wrong event after the history": (recommend([EVENT] * 9 + [{}]), "event 9: " + AN_EVENT),
    "g6_itemlist": (recommend([{"item": [TITLE], "rating": 4}]), "event 0: ['Harbour 1'] is no title"),
    "item None": (recommend([{"item": None, "rating": 4}]), "event 0: None is no title"),
    "item by number": (recommend([{"item": 3, "rating": 4}]), "event 0: 3 is no title"),
    "the padding's title": (recommend([{"item": "", "rating": 4}]), "event 0: '' is no title"),
    "half a character in a title": (recommend([{"item": "\ud800", "rating": 4}]), r"'\ud800' is no title"),
    "a title almost right": (recommend([{"item": "harbour 1", "rating": 4}]), "did you mean 'Harbour 1'"),
    "g6_rbool": (rated(True), "event 1: rating True; " + RATINGS),
    "rating missing": (recommend([{"item": TITLE}]), "event 0: rating None; " + RATINGS),
    "rating as text": (rated("4"), "event 1: rating '4'; " + RATINGS),
    "rating nan": (rated(math.nan), "event 1: rating nan; " + RATINGS),
    "rating inf": (rated(math.inf), "event 1: rating inf; " + RATINGS),
    "rating between two": (rated(4.2), "event 1: rating 4.2; " + RATINGS),
    "rating of no float": (rated(10**400), "event 1: rating 1000"),
    "rating in a list": (rated([4.0]), "event 1: rating [4.0]; " + RATINGS),
    "g6_kfloat": (recommend([EVENT], 2.5), A_K + "2.5"),
    "g6_kstr": (recommend([EVENT], "3"), A_K + "'3'"),
    "k is a whole float": (recommend([EVENT], 3.0), A_K + "3.0"),
    "k is True": (recommend([EVENT], True), A_K + "True"),
    "k is NumPy's True": (recommend([EVENT], np.True_), A_K),
    "k is 0": (recommend([EVENT], 0), A_K + "0"),
    "k is negative": (recommend([EVENT], -1), A_K + "-1"),
    "k is None": (recommend([EVENT], None), A_K + "None"),
    "k of categories": (answer(task="favorite_category", k="2"), A_K),
    "a task it was not trained for": (answer(task="review_generation"), "train a run of 'review_generation'"),
    "no such task": (answer(task=""), "answers next_item and favorite_category: train a run of ''"),
    "a task that is a list": (answer(task=["next_item"]), "answers next_item and favorite_category"),
    "about where none is asked": (answer(about=EVENT), "asks about none"),
    "about an empty event": (answer(about={}), "asks about none"),
    "g6_gen_none": (write(None), "prompt must be a text, got None"),
    "g6_gen_list": (write(["Once"]), "prompt must be a text, got ['Once']"),
    "a prompt in bytes": (write(b"Once"), "prompt must be a text, got b'Once'"),
    "g6_gen_surr": (write("Once \udc80"), r"prompt holds '\udc80' at 5, half a character"),
    "g6_gen_float": (write("Once", 2.5), NEW + "2.5"),
    "max_new_tokens is 0": (write("Once", 0), NEW + "0"),
    "max_new_tokens is negative": (write("Once", -1), NEW + "-1"),
    "max_new_tokens is True": (write("Once", True), NEW + "True"),
    "max_new_tokens is text": (write("Once", "2"), NEW + "'2'"),
    "more new tokens than the model reads": (write("Once", FULL), f"{FULL} this model has room"),
    "a longer prompt than the model reads": (write("Once " * FULL), f"{FULL} this model has room"),
    "g6_gen_seedhuge": (write("Once", seed=2**70), SEED + str(2**70)),
    "a seed that another stands for": (write("Once", seed=2**32), SEED + str(2**32)),
    "a negative seed": (write("Once", seed=-1), SEED + "-1"),
    "a seed that is no number": (write("Once", seed="1"), SEED + "'1'"),
    "g6_gen_tnan": (write("Once", temperature=math.nan), DEGREES + "nan"),
    "temperature inf": (write("Once", temperature=math.inf), DEGREES + "inf"),
    "temperature below 0": (write("Once", temperature=-0.5), DEGREES + "-0.5"),
    "temperature True": (write("Once", temperature=True), DEGREES + "True"),
    "temperature text": (write("Once", temperature="1"), DEGREES + "'1'"),
    "temperature None": (write("Once", temperature=None), DEGREES + "None"),
    "g6_log_None": (logits(None), SHAPE + "()"),
    "g6_log_empty": (logits([]), SHAPE + "(0,)"),
    "g6_log_empty2": (logits([[]]), SHAPE + "(1, 0)"),
    "no text of three tokens": (logits(np.zeros((0, 3), np.int32)), SHAPE + "(0, 3)"),
    "one text": (logits([1, 2, 3]), SHAPE + "(3,): put one text in a list"),
    "g6_log_float": (logits([[1.0, 2.0]]), WHOLE + "float64"),
    "g6_log_nan": (logits(np.array([[1.0, math.nan]])), WHOLE + "float64"),
    "truths": (logits([[True, False]]), WHOLE + "bool"),
    "g6_log_str": (logits([["a"]]), WHOLE + "<U1"),
    "ids of no int": (logits([[2**70]]), WHOLE + "object"),
    "g6_log_ragged": (logits([[1, 2], [3]]), "got texts of several lengths"),
    "a negative id": (logits([[1, -1]]), "token ids run from 0 to "),
    "an id beyond the vocabulary": (logits([[10**6]]), "token ids run from 0 to "),
    "an id that would wrap around": (logits([[2**32]]), "token ids run from 0 to "),
    "g6_log_long": (logits(np.ones((1, FULL + 1), int)), f"{FULL + 1} tokens are more than the {FULL}"),
    "g6_load_None": (lambda _: user_llm.load(None), "workdir must be the path of a folder, got None"),
    "load of no name": (lambda _: user_llm.load(""), "workdir must be the path of a folder, got ''"),
    "load of a file": (lambda _: user_llm.load(__file__), "workdir must be a folder: "),
    "load of nothing": (lambda _: user_llm.load("/nowhere/run"), "/nowhere/run/config.json does not exist"),
    "g6_save_file": (lambda models: models.text.save(__file__), "folder must be a folder: "),
    "save to None": (lambda models: models.text.save(None), "folder must be the path of a folder, got None"),
    "g6_lt_none": (lambda _: user_llm.load_timelines(None), "unknown dataset None: the families are"),
    "g6_wc_float": (lambda _: resolve_min_history(20.0, None), "history_length must be a whole number"),
    "a window of half an event": (lambda _: resolve_min_history(20, 2.5), "min_history must be a whole number"),
    "g4_hf_None": (lambda _: user_llm.load_language_model(None), "None: no such folder; expected one, or a hub name"),
    "g4_hf_empty": (lambda _: user_llm.load_language_model(""), "'': no such folder; expected one, or a hub name"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_it_is_refused_by_name(fault, models):
    call, words = REFUSED[fault]
    with pytest.raises(UserError) as error:
        call(models)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


TAKEN = {
    "a tuple of events": recommend((EVENT,)),
    "a deque of events": recommend(deque([EVENT])),
    "more events than are read": recommend([EVENT] * (HISTORY + 3)),
    "the same event twice": recommend([EVENT, EVENT]),
    "more keys than are read": recommend([EVENT | {"when": 5}]),
    "a rating as int": rated(4),
    "a rating as float32": rated(np.float32(4.5)),
    "a rating as int64": rated(np.int64(4)),
    "k as int64": recommend([EVENT], np.int64(3)),
    "a task by None": answer(task=None),
    "ids as uint8": logits(np.ones((1, 2), np.uint8)),
    "ids of JAX": logits(jnp.ones((1, 2), jnp.int32)),
    "a prompt of nothing but BOS": write(""),
    "a prompt of NUL and emoji": write("\0 \U0001f600"),
    "the largest seed": write("Once", seed=2**32 - 1, temperature=1),
    "the coldest temperature": write("Once", temperature=1e-6),
    "temperature of NumPy": write("Once", temperature=np.float32(0)),
}


@pytest.mark.parametrize("case", TAKEN)
def test_it_is_taken(case, models):
    assert TAKEN[case](models) is not None


def test_the_coldest_temperature_is_greedy_and_no_lottery(models):
    drawn = {models.text.generate("Harbour", 6, temperature=1e-6, seed=seed) for seed in range(3)}
    assert drawn == {models.text.generate("Harbour", 6)}

"""Strategies cover every parameter, and train the components that the paper says (3.2.3)."""

import pytest

from user_llm.experiment.stages import STAGES
from user_llm.models import parameters
from user_llm.schema import get_config
from user_llm.training.trainable import EVERYTHING, STRATEGIES, trainable

TRAINED = {
    "full": {"encoder", "connector", "language_model"},
    "lora": {"encoder", "connector"},  # and the adapters
    "enc": {"encoder", "connector"},
    "proj": {"connector"},
}


@pytest.fixture(scope="module", params=[False, True], ids=["unrolled", "scanned"])
def paths(request, build_user_llm):
    return parameters.split(parameters.abstract(lambda rngs: build_user_llm(rngs, scan_layers=request.param)))[1].keys()


def test_every_strategy_is_known_here():
    assert STRATEGIES.keys() == TRAINED.keys()


@pytest.mark.parametrize("strategy", TRAINED)
def test_a_strategy_covers_every_parameter_and_trains_its_components(strategy, paths):
    trains = trainable(paths, STRATEGIES[strategy])
    assert list(trains) == list(paths)
    for path, answer in trains.items():
        assert answer == (path.split("/")[0] in TRAINED[strategy]), path


@pytest.mark.parametrize("strategy", TRAINED)
@pytest.mark.parametrize(
    "rates", [{"encoder": 0.0}, {"llm": 0.0}, {"encoder": 0.0, "llm": 0.0}, {"encoder": 0.1}], ids=str
)
def test_parts_without_a_rate_do_not_train(strategy, rates, paths):
    config = get_config()
    config.strategy = strategy
    config.integration.rates.update(rates)
    at_rest = {{"llm": "language_model"}.get(part, part) for part, rate in rates.items() if not rate}
    for path, answer in trainable(paths, STAGES["user_llm"].rules(config)).items():
        assert answer == (path.split("/")[0] in TRAINED[strategy] - at_rest), path


def test_a_model_trained_alone_trains_whole(paths):
    assert all(trainable(paths, EVERYTHING).values())


def test_the_first_row_that_matches_the_whole_path_decides():
    rules = ((r"a/b", False), (r"a/.*", True), (r".*", False))
    assert trainable(["a/b", "a/bc", "x/a/b"], rules) == {"a/b": False, "a/bc": True, "x/a/b": False}


@pytest.mark.parametrize("strategy", TRAINED)
def test_a_parameter_without_a_row_is_named(strategy, paths):
    with pytest.raises(ValueError, match="No row of the strategy covers the parameter adapter/down_DR"):
        trainable([*paths, "adapter/down_DR"], STRATEGIES[strategy])


@pytest.mark.parametrize("strategy", TRAINED)
def test_adapters_and_perceiver_train_where_the_paper_says(strategy):
    added = ["perceiver/latents_LU", "language_model/layers/0/attention/lora/q/a_DR", "language_model/layers/lora/b_RD"]
    trains = trainable([*added, "connector/projection_UD"], STRATEGIES[strategy])
    assert [trains[path] for path in added] == [True, *[strategy in ("full", "lora")] * 2]


def test_a_strategy_that_trains_nothing_is_refused(paths):
    with pytest.raises(ValueError, match="trains no parameter"):
        trainable([path for path in paths if not path.startswith("connector")], STRATEGIES["proj"])

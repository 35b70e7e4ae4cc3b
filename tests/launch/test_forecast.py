"""The forecast of a sweep: a sum of what was measured."""

from user_llm.launch import forecast as forecasts
from user_llm.launch.forecast import forecast
from user_llm.launch.plan import Plan
from user_llm.launch.runs import EFFICIENCY
from user_llm.launch.scales import DATASETS
from user_llm.launch.sweeps import tables_of


def test_the_hours_are_those_of_the_kinds_that_were_measured(monkeypatch):
    kinds = (("laptop", "*.bert4rec.*", 3600), ("laptop", "*.alone.*", 1800), ("paper", "*", 1))
    monkeypatch.setattr(forecasts, "SECONDS", kinds)
    runs = Plan("laptop", (0,), (), ("2",), ("movielens",)).runs()
    assert sorted(run.label.split(".")[2] for run in runs if ".alone." in run.label) == [
        *("autoregressive", "bert4rec", "dual_encoder")
    ]
    text = forecast("laptop", runs, 2)  # one of an hour, two of a half
    assert text == (
        "Forecast: 5 runs, about 60 min at --jobs=2 with a core of an AMD EPYC for each, at the scale's own steps "
        "(without 2 of kinds that were not measured)"
    )
    assert forecast("laptop", [], 2) == "Forecast: 0 runs, none of a kind that was measured"


def test_every_kind_of_run_of_a_workstation_has_its_seconds_and_every_line_a_run():
    runs = Plan("workstation", (0, 1), (), tables_of("workstation"), DATASETS).runs()
    used = {forecasts.line_of("workstation", run) for run in runs if run.program != EFFICIENCY}
    assert used == set(forecasts.SECONDS)

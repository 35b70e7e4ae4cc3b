"""Fused answers from a config to the public face, beside a second encoder."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from ml_collections.config_flags import config_path

import user_llm
from user_llm.errors import UserError
from user_llm.evaluation.fusion import WEIGHTS
from user_llm.experiment import experiment
from user_llm.experiment.validation import validate
from user_llm.host import Host
from user_llm.parallel.mesh import one_device
from user_llm.run import run
from user_llm.tasks.rows import ENCODER, FUSED, RERANKED, TWO_ENCODERS, USER_LLM

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)


def configured(folder, **overrides):
    config = tiny.get_config()
    for key, value in {"data.data_dir": str(folder / "data"), **overrides}.items():
        config_path.set_value(key, config, value)
    validate(config)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a run with fused answers, and its results."""
    folder = tmp_path_factory.mktemp("fused")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "make_mesh", lambda sizes: one_device())
        other = configured(folder, stages=("encoder",), seed=1)
        run(other, folder / "second", Host(tensorboard=False))
        options = {"evaluation.answers": "fused", "evaluation.max_fit": 20, "stages": ("encoder", "user_llm")}
        config = configured(folder, **options, **{"evaluation.second_encoder": str(folder / "second")})
        results = run(config, folder / "run", Host(tensorboard=False))
    shutil.rmtree(folder / "second")  # answers need it no more
    return folder / "run", results


def test_the_table_has_the_fused_row_and_its_controls(finished):
    workdir, results = finished
    protocol = next(iter(results["protocols"].values()))
    assert {ENCODER, USER_LLM, FUSED, RERANKED, TWO_ENCODERS} <= {*protocol["rows"]}
    assert {f"{FUSED} - {ENCODER}", f"{FUSED} - {TWO_ENCODERS}"} <= {*protocol["comparisons"]}
    kept = json.loads((workdir / "fusion" / "next_item.json").read_text())
    assert kept["weight"] in WEIGHTS
    assert set(kept["tried"]) == {f"{weight:g}" for weight in WEIGHTS}


def test_many_answers_are_the_beams_in_another_way(finished):
    model = user_llm.load(finished[0])
    events = [{"item": title, "rating": 4.0} for title in model.catalogue.titles[3:9]]
    beams = model.recommend(events, k=100, answers="fused")
    exact = model.recommend(events, k=101, answers="fused")
    assert [answer.text for answer in beams] == [answer.text for answer in exact]
    assert [answer.score for answer in beams] == pytest.approx([answer.score for answer in exact], abs=1e-3)
    with pytest.raises(UserError, match="answers must be 'beams' or 'fused', got 'both'"):
        model.recommend(events, answers="both")

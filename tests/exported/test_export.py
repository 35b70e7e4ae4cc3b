"""An exported run, read by its own runtime without this package, against the run."""

import copy
import json
import subprocess
import sys
import venv

import pytest
from jax import export

from tests.user_models import HISTORY, made_up
from user_llm.errors import UserError
from user_llm.exported.export import export_run, main

# Runs without this package, and without what the runtime has not been promised.
_ASKS = """
import importlib.abc, json, sys

class Only(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[3].split(","):
            raise ImportError(name)

sys.meta_path.insert(0, Only())
sys.path.insert(0, sys.argv[1])
from runtime import Recommender
run, users = Recommender(sys.argv[1]), json.loads(sys.argv[2])
kept = run.encode(users)
print(json.dumps({"many": run.recommend(users, 5), "kept": run.recommend(kept, 5), "one": run.recommend(users[1], 2)}))
for wrong in ([{"item": "Nothing", "rating": 4.0}], [{"item": users[0][0]["item"], "rating": 99}]):
    try:
        run.recommend(wrong)
    except ValueError as error:
        print(error, file=sys.stderr)
"""


PROMISED = ("jax", "flatbuffers", "numpy", "safetensors")
NOT_PROMISED = "user_llm,flax,optax,orbax,tensorflow,sentencepiece,pyarrow,duckdb,ml_collections"


@pytest.fixture(params=["blocked", pytest.param("absent", marks=pytest.mark.drill)])
def without_the_rest(request, tmp_path):
    """Starts Python where packages that the runtime has not been promised are blocked, or were never installed."""
    if request.param == "blocked":
        return lambda *given: _answered(sys.executable, *given, NOT_PROMISED)
    venv.create(tmp_path / "clean", with_pip=True)
    python = str(tmp_path / "clean" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PROMISED], check=True)
    return lambda *given: _answered(python, *given, "", env={})  # with the newest JAX, and no setting of ours


def _answered(python, folder, users, blocked, env=None):
    asked = [python, "-I", "-c", _ASKS, str(folder), json.dumps(users), blocked]
    return subprocess.run(asked, capture_output=True, text=True, check=True, env=env)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    run = made_up(tmp_path_factory.mktemp("user_model"))
    run.config.integration.within_catalogue = True
    return run


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "run"
    export_run(model, out, num_beams=10, batches=[1, 8], platforms=["cpu", "cuda", "tpu"])
    return out


def test_it_answers_as_the_run_does_without_the_package(model, folder, without_the_rest):
    titles = model.catalogue.titles[1:]
    users = [[{"item": title, "rating": 4.0} for title in titles[start : start + size]] for start, size in
             ((0, 3), (4, 1), (9, HISTORY + 2), *((n, 2) for n in range(9)))]  # fmt: skip
    answered = without_the_rest(folder, users)
    found = json.loads(answered.stdout)
    wanted = model.recommend(users, 5)
    for answers, own in zip(found["many"], wanted, strict=True):
        assert [title for title, _ in answers] == [answer.text for answer in own]
        assert [score for _, score in answers] == pytest.approx([answer.score for answer in own], abs=1e-4)
    assert found["kept"] == found["many"]
    assert [title for title, _ in found["one"]] == [answer.text for answer in wanted[1][:2]]
    assert "user 0: 'Nothing' is no title of the catalogue" in answered.stderr
    assert "user 0: 99 is no rating of the run" in answered.stderr


def test_whoever_may_read_one_file_may_read_all(folder):
    assert len({path.stat().st_mode for path in folder.rglob("*") if path.is_file()}) == 1


def test_programs_are_for_every_platform_and_hold_no_weights(folder):
    facts = json.loads((folder / "export.json").read_text())
    weights = (folder / "weights.safetensors").stat().st_size
    for size in facts["batches"]:
        for name in ("encode", "recommend"):
            program = (folder / "programs" / f"{name}_{size}.bin").read_bytes()
            assert export.deserialize(bytearray(program)).platforms == ("cpu", "cuda", "tpu")
            assert len(program) < max(weights, 400_000)
    assert {path.name for path in (folder / "tokenizer").iterdir()} == {"tokenizer.model"}


def test_what_cannot_be_exported_is_told(model, folder, tmp_path, capsys):
    with pytest.raises(UserError, match="is there already: name a new folder"):
        export_run(model, folder, num_beams=10, batches=[1], platforms=["cpu"])
    texts = copy.copy(model)
    texts.config = copy.deepcopy(model.config)
    texts.config.data.text_history = 3
    with pytest.raises(UserError, match="only runs are exported whose LLM reads users as embeddings alone"):
        export_run(texts, tmp_path / "new", num_beams=10, batches=[1], platforms=["cpu"])
    assert main([f"--workdir={tmp_path}", f"--out={tmp_path / 'new'}", "--num_beams=0"]) == 1
    assert "--num_beams must be a whole number of at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([f"--workdir={tmp_path}", f"--out={tmp_path / 'new'}", "--platforms=gpu"])
    assert "expected some of cpu,cuda,tpu" in capsys.readouterr().err

"""A run on a checkpoint's pieces that can come out: the same texts, and the whole model back out of it."""

import importlib.util
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from ml_collections.config_flags import config_path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import user_llm
from user_llm.checkpoints import huggingface
from user_llm.checkpoints.transfer import with_prefix
from user_llm.config import ConfigError
from user_llm.data.vocabularies import load_vocabulary
from user_llm.experiment import experiment as experiment_lib
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.export import save_language_model
from user_llm.experiment.prepare import prepare
from user_llm.experiment.validation import validate
from user_llm.host import Host
from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel
from user_llm.models.model import Model
from user_llm.parallel.mesh import one_device
from user_llm.run import run

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

PIECES = 500
OPTIONS = dict(
    model_type="llama",
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=512,
    vocab_size=PIECES + 8,  # more rows than pieces, as in many checkpoints
    tie_word_embeddings=False,
)
TASKS = ("next_item", "favorite_category", "review_generation")


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    monkeypatch.setattr(experiment_lib, "make_mesh", lambda sizes: one_device())


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama of random weights with a byte-level tokenizer, most of whose pieces no title has."""
    folder = tmp_path_factory.mktemp("llm")
    (folder / "config.json").write_text(json.dumps(OPTIONS))
    config = huggingface.load_config(folder / "config.json")
    huggingface.save_language_model(LanguageModel(config, rngs=nnx.Rngs(0)), folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=PIECES - 1, initial_alphabet=alphabet, show_progress=False)
    texts = ["The user's next movie: The Crimson Harbour (1995)", "Zweitausendundeins verrückte Zwölftonmusiker"]
    tokenizer.train_from_iterator([*texts, "xylophone quizzes bewitch jazzy folks"] * 2, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "bos_token": None}))
    return folder


def configured(data_dir, checkpoint, **overrides):
    config = tiny.get_config()
    values = {
        "data.data_dir": str(data_dir),
        "stages": ("user_llm",),
        "encoder.init": "random",
        "strategy": "enc",
        "llm.checkpoint": str(checkpoint),
        "llm.trim_vocabulary": True,
        "prompt.max_targets": 40,
        "training.user_llm.steps": 4,
        "training.user_llm.accumulate": 1,
        "evaluation.max_users": 6,
        **{key.replace("__", "."): value for key, value in overrides.items()},
    }
    for key, value in values.items():
        config_path.set_value(key, config, value)
    validate(config)
    return config


@pytest.fixture(scope="module")
def finished(folder, data_dir, tmp_path_factory):
    """A workdir, and what its results hold."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment_lib, "make_mesh", lambda sizes: one_device())
        return workdir, run(configured(data_dir, folder, data__reader="seqio"), workdir, Host(tensorboard=False))


def test_a_run_answers_and_its_answers_are_titles(finished, folder):
    workdir, results = finished
    assert "User-LLM" in next(iter(results["protocols"].values()))["rows"]
    model = user_llm.load(workdir)
    whole = load_vocabulary(folder)
    assert model.tokenizer.whole == whole
    assert model.tokenizer.rows < 0.9 * whole.rows
    tables = [model.contextualised.parameters[f"language_model/{name}"] for name in huggingface.TABLES]
    assert [len(table) for table in tables] == [model.tokenizer.rows] * 2
    titles = model.catalogue.titles
    for k in (10, 101):  # by beams, and exactly
        answers = model.recommend([{"item": titles[item], "rating": 4.0} for item in (3, 5)], k=k)
        assert len({answer.text for answer in answers} & {*titles[1:]}) == min(k, 58)
    assert model.tokenizer.respelt == 0


def test_the_whole_checkpoint_comes_back_out_of_a_run_that_froze_it(finished, folder, tmp_path):
    user_llm.load(finished[0]).save_language_model(tmp_path / "out")
    before, after = (parameters.split(huggingface.load_language_model(one))[1] for one in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    for path, value in before.items():
        np.testing.assert_array_equal(value, after[path], err_msg=path)
    loaded, original = (user_llm.load_language_model(one) for one in (tmp_path / "out", folder))
    assert loaded.tokenizer == original.tokenizer
    tokens = np.array([loaded.tokenizer.encode("The jazzy user's xylophone")])
    np.testing.assert_array_equal(loaded.logits(tokens), original.logits(tokens))


@pytest.mark.parametrize(("strategy", "trim"), [("full", True), ("lora", True), ("lora", False), ("full", False)])
def test_what_a_run_has_trained_is_in_the_rows_it_kept(strategy, trim, data_dir, folder, finished, tmp_path, caplog):
    """Stands for a finished run: its vocabulary and catalogue, and weights of which half an embedding was trained."""
    overrides = {"strategy": strategy, "llm.trim_vocabulary": trim, "lora.rank": 2, "integration.kind": "none"}
    experiment = Experiment(configured(data_dir, folder, data__text_history=2, **overrides), finished[0], one_device())
    if not trim:
        experiment.vocabulary = experiment.vocabulary.whole
    kept = experiment.vocabulary.kept
    config, before = (
        experiment.assembly.adapted_config,
        huggingface.load_parameters(folder, huggingface.load_config(folder)),
    )
    values = huggingface.load_parameters(folder, experiment.assembly.language_model_config, rows=kept)
    if strategy == "full":
        values["head_VD"] = values["head_VD"] + 1
    shapes = parameters.split(parameters.abstract(lambda rngs: LanguageModel(config, rngs=rngs)))[1]
    random = np.random.default_rng(0)
    values |= {path: random.normal(size=one.shape).astype("f") for path, one in shapes.items() if path not in values}
    graphdef = parameters.split(parameters.abstract(experiment.assembly.user_llm))[0]
    model = Model(graphdef, with_prefix("language_model", values), {}, one_device())
    with caplog.at_level(logging.WARNING):
        save_language_model(experiment, model, tmp_path / "out")
    assert ("were never trained down" in caplog.text) == (trim and strategy == "full")
    after = parameters.split(huggingface.load_language_model(tmp_path / "out"))[1]
    assert before.keys() == after.keys()
    changed = {path for path, value in before.items() if np.any(value != after[path])}
    if strategy == "full":
        assert changed == {"head_VD"}
        rows = np.isin(np.arange(PIECES + 8), range(PIECES + 8) if kept is None else kept)
        np.testing.assert_array_equal(after["head_VD"], before["head_VD"] + rows[:, None])
    else:
        assert {path.rsplit("/", 1)[-1] for path in changed} == {"q_DNH", "v_DKH"}


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_every_prompt_and_answer_is_the_whole_vocabulary_s(kind, folder, data_dir, shared_dir, tmp_path):
    """Of all tasks, histories and training reviews; other reviews are spelt otherwise, and read the same."""
    checkpoint = folder if kind == "byte-level" else shared_dir / "llm" / "stories260K"
    overrides = {
        "task": ",".join(TASKS),
        "data.dataset": "amazon_reviews/simulated",
        "data.text_history": 3,
        "prompt.max_inputs": 300,
        "prompt.max_targets": 80,
        "integration.kind": "none",
        "strategy": "full",
    }
    whole, few = (
        Experiment(configured(data_dir, checkpoint, llm__trim_vocabulary=trim, **overrides), tmp_path / str(trim), mesh)
        for trim, mesh in ((False, one_device()), (True, one_device()))
    )
    for experiment in (whole, few):
        experiment.workdir.mkdir()
        prepare(experiment)
    vocabulary = few.vocabulary
    assert vocabulary.whole == whole.vocabulary
    assert vocabulary.rows < whole.vocabulary.rows
    assert few.assembly.language_model_config.vocab_size == vocabulary.rows
    for split in ("train", "validation", "test"):
        for task in TASKS:
            theirs, ours = (one.source(task, split) for one in (whole, few))
            ids = np.arange(min(len(theirs), 500))
            if task == "review_generation" and split != "train":
                assert ours.references(ids) == theirs.references(ids)
                continue
            theirs, ours = theirs.read(ids), ours.read(ids)
            valid = np.arange(theirs.tokens.shape[1]) < theirs.lengths[:, None]
            np.testing.assert_array_equal(ours.lengths, theirs.lengths)
            np.testing.assert_array_equal(vocabulary.kept[ours.tokens][valid], theirs.tokens[valid])
    assert vocabulary.respelt == 0


def test_what_cannot_be_trimmed_is_refused(folder, data_dir, finished, tmp_path):
    with pytest.raises(ConfigError, match=r"llm\.trim_vocabulary=True needs a checkpoint's: add --config\.llm\.check"):
        configured(data_dir, "", strategy="full")
    trimmed = finished[0] / "vocabulary"
    config = configured(data_dir, folder, llm__vocabulary=str(trimmed))
    with pytest.raises(ConfigError, match=r"a vocabulary that another run has trimmed.*vocabulary/tokenizer\.json"):
        prepare(Experiment(config, tmp_path, one_device()))
    # The tokenizer beside the list is whole, and may be named.
    config = configured(data_dir, folder, llm__vocabulary=str(trimmed / "tokenizer.json"))
    experiment = Experiment(config, tmp_path, one_device())
    prepare(experiment)
    assert experiment.vocabulary == load_vocabulary(trimmed)

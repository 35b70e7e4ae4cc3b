"""Open language models under User-LLM, from a Hugging Face folder to results: what is frozen keeps every bit."""

import hashlib
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections.config_flags import config_path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import user_llm
from user_llm.checkpoints import huggingface
from user_llm.experiment import experiment
from user_llm.experiment.validation import validate
from user_llm.host import Host
from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel
from user_llm.parallel.mesh import one_device
from user_llm.run import run

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

PIECES = 320  # of the tokenizer; the models have rows for more, as Gemma 3 has
DIMS = {
    "gpt2": dict(n_embd=16, n_layer=2, n_head=2, n_positions=96, vocab_size=PIECES + 8),
    "gemma3_text": dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=8,  # shorter than a prompt
        layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=128,
        vocab_size=PIECES + 8,
    ),
}

INTEGRATIONS = {"gpt2": "soft_prompt", "gemma3_text": "cross_attention"}


@pytest.fixture(scope="module", params=[pytest.param("gpt2", marks=pytest.mark.drill), "gemma3_text"])
def folder(request, tmp_path_factory):
    """A model with random weights and a byte-level tokenizer.json, in which token 0 is "!"."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "config.json").write_text(json.dumps({"model_type": request.param, **DIMS[request.param]}))
    config = huggingface.load_config(folder / "config.json")
    huggingface.save_language_model(LanguageModel(config, rngs=nnx.Rngs(0)), folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=PIECES - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["The user's next movie: The Crimson Harbour (1995)"] * 2, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "bos_token": None}))
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def contextualised(folder, data_dir, workdir, monkeypatch, **overrides):
    """Runs a random encoder and the model of `folder` to results; (results, all parameters afterwards)."""
    monkeypatch.setattr(experiment, "make_mesh", lambda sizes: one_device())
    config = tiny.get_config()
    values = {
        "data.data_dir": str(data_dir),
        "stages": ("user_llm",),
        "encoder.init": "random",
        "llm.checkpoint": str(folder),
        "prompt.max_targets": 30,
        "training.user_llm.steps": 4,
        "training.user_llm.accumulate": 1,
        "evaluation.max_users": 10,
        **overrides,
    }
    for key, value in values.items():
        config_path.set_value(key, config, value)
    validate(config)
    return run(config, workdir, Host(tensorboard=False)), user_llm.load(workdir).contextualised.parameters


def digest(values):
    return {path: hashlib.sha256(np.asarray(value).tobytes()).hexdigest() for path, value in values.items()}


def weights(folder):
    return parameters.split(huggingface.load_language_model(folder))[1]


def test_an_open_llm_answers_with_titles_and_keeps_its_weights(folder, data_dir, tmp_path, monkeypatch):
    integration = INTEGRATIONS[json.loads((folder / "config.json").read_text())["model_type"]]
    overrides = {"strategy": "lora", "integration.kind": integration, "lora.rank": 2}
    results, after = contextualised(folder, data_dir, tmp_path / "run", monkeypatch, **overrides)
    before = {f"language_model/{path}": value for path, value in digest(weights(folder)).items()}
    assert before.items() <= digest(jax.device_get(after)).items()
    assert any("/lora/" in path and np.any(value) for path, value in after.items())
    assert "User-LLM" in next(iter(results["protocols"].values()))["rows"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").open()]
    assert all(len(set(line["top"])) == 10 for line in lines)


@pytest.mark.drill
def test_stories260k_is_carried_frozen(shared_dir, data_dir, tmp_path, monkeypatch):
    folder = shared_dir / "llm" / "stories260K"
    _, after = contextualised(folder, data_dir, tmp_path / "run", monkeypatch, strategy="enc")
    before = {f"language_model/{path}": value for path, value in digest(weights(folder)).items()}
    assert before.items() <= digest(jax.device_get(after)).items()

"""Hugging Face folders, judged by `transformers` where it is installed, and by what they must refuse."""

import dataclasses
import fnmatch
import json
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from user_llm.checkpoints.huggingface import (
    CheckpointError,
    content,
    load_config,
    load_language_model,
    load_parameters,
    resolve,
    save_language_model,
)
from user_llm.checkpoints.tensors import Row
from user_llm.errors import UserError
from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel, LanguageModelConfig, causal_mask
from user_llm.models.lora import LoraConfig
from user_llm.parallel import rules
from user_llm.parallel.mesh import make_mesh

UNTIED = LanguageModelConfig(
    vocab_size=24,
    num_layers=2,
    width=12,
    num_heads=6,
    num_kv_heads=2,
    head_dim=4,
    hidden=20,
    rope_theta=500000.0,
    norm_eps=1e-6,
    tie_embeddings=False,
    max_length=64,
)


@pytest.fixture(scope="module")
def stories(shared_dir) -> Path:
    return shared_dir / "llm" / "stories260K"


@pytest.fixture(scope="module")
def untied() -> LanguageModel:
    return jax.jit(lambda: LanguageModel(UNTIED, rngs=nnx.Rngs(0)))()


@pytest.fixture
def folder(untied, tmp_path) -> Path:
    save_language_model(untied, tmp_path / "saved")
    return tmp_path / "saved"


@jax.jit
def _logits(model, tokens, valid):
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    hidden, _ = model(tokens, positions, causal_mask(valid))
    return model.logits(hidden)


def _transformers_logits(folder: Path, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    transformers = pytest.importorskip("transformers", reason="needs the [test] extra's transformers")
    torch = pytest.importorskip("torch", reason="needs the [test] extra's torch")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
    with torch.no_grad():
        out = model(
            torch.from_numpy(tokens),
            attention_mask=torch.from_numpy(valid.astype(np.int64)),
            position_ids=torch.from_numpy(positions),
        )
    return out.logits.numpy()


def _same_parameters(first: LanguageModel, second: LanguageModel) -> None:
    ours, theirs = parameters.split(first)[1], parameters.split(second)[1]
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        assert value.dtype == theirs[path].dtype, path
        np.testing.assert_array_equal(value, theirs[path], err_msg=path)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_logits_of_a_real_checkpoint_equal_transformers(stories, scan_layers):
    model = load_language_model(stories, scan_layers=scan_layers)
    tokens = np.random.default_rng(0).integers(3, 512, (2, 24))
    valid = np.ones(tokens.shape, bool)
    valid[0, :7] = valid[1, -5:] = False  # one row padded on the left, one on the right
    expected = _transformers_logits(stories, tokens, valid)
    np.testing.assert_allclose(_logits(model, tokens, valid)[valid], expected[valid], atol=1e-4)


def test_greedy_text_of_a_real_checkpoint_is_the_published_sentence(stories):
    sentencepiece = pytest.importorskip("sentencepiece")
    vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(stories / "tokenizer.model"))
    model = load_language_model(stories)
    sequence = [vocabulary.bos_id(), *vocabulary.encode("Once upon a time")]
    row = np.zeros((1, 60), np.int64)
    while len(sequence) < row.shape[1]:
        row[0, : len(sequence)] = sequence
        logits = _logits(model, row, np.arange(row.shape[1])[None] < len(sequence))
        sequence.append(int(jnp.argmax(logits[0, len(sequence) - 1])))
    expected = (
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball."
    )
    assert vocabulary.decode(sequence).startswith(expected)


def test_what_we_save_transformers_loads(untied, folder):
    tokens = np.random.default_rng(0).integers(0, 24, (2, 9))
    valid = np.ones(tokens.shape, bool)
    np.testing.assert_allclose(_logits(untied, tokens, valid), _transformers_logits(folder, tokens, valid), atol=1e-4)


def test_what_transformers_saves_in_shards_we_load(tmp_path):
    pytest.importorskip("torch", reason="needs the [test] extra's torch")
    transformers = pytest.importorskip("transformers", reason="needs the [test] extra's transformers")
    config = transformers.LlamaConfig(
        vocab_size=24,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    tokens = np.random.default_rng(0).integers(0, 24, (1, 9))
    valid = np.ones(tokens.shape, bool)
    model = load_language_model(tmp_path)
    assert (model.config.rope_theta, model.config.head_dim, model.config.tie_embeddings) == (5000.0, 4, False)
    np.testing.assert_allclose(_logits(model, tokens, valid), _transformers_logits(tmp_path, tokens, valid), atol=1e-4)


def test_saved_in_any_layout_and_shards_it_loads_back_exactly(untied, tmp_path):
    save_language_model(untied, tmp_path / "one")
    scanned = load_language_model(tmp_path / "one", scan_layers=True)
    save_language_model(scanned, tmp_path / "many", max_shard_bytes=2000)
    names = sorted(file.name for file in (tmp_path / "many").glob("*.safetensors"))
    assert len(names) > 3
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    largest = max(array.nbytes for array in load_file(tmp_path / "one" / "model.safetensors").values())
    for name in names:
        assert sum(a.nbytes for a in load_file(tmp_path / "many" / name).values()) <= max(2000, largest)
    _same_parameters(load_language_model(tmp_path / "many"), untied)
    assert load_config(tmp_path / "many") == UNTIED


def test_bfloat16_parameters_survive(folder, tmp_path):
    low = load_language_model(folder, param_dtype="bfloat16")
    save_language_model(low, tmp_path / "low")
    assert load_file(tmp_path / "low" / "model.safetensors")["model.norm.weight"].dtype == jnp.bfloat16
    _same_parameters(load_language_model(tmp_path / "low", param_dtype="bfloat16"), low)
    assert json.loads((tmp_path / "low" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_tokenizer_and_special_ids_travel_along(untied, tmp_path):
    (tmp_path / "source.model").write_bytes(b"pieces")
    save_language_model(untied, tmp_path / "out", tmp_path / "source.model", bos_id=5, eos_id=[7, 9])
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"pieces"
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (values["bos_token_id"], values["eos_token_id"]) == (5, [7, 9])


def test_a_folder_gives_its_tokenizer_files_and_no_others(untied, tmp_path):
    names = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    for name in (*names, "config.json", "results.json"):
        (tmp_path / name).write_text(f'"{name}"')
    save_language_model(untied, tmp_path / "out", tmp_path, bos_id=-1)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {*names, "config.json", "model.safetensors"}
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '"tokenizer.json"'
    assert "bos_token_id" not in json.loads((tmp_path / "out" / "config.json").read_text())
    save_language_model(untied, tmp_path / "file", tmp_path / "tokenizer.json")
    assert (tmp_path / "file" / "tokenizer.json").exists()


@pytest.mark.parametrize("scan_layers", [False, True])
def test_onto_a_mesh_each_parameter_comes_as_the_rules_cut_it(folder, untied, scan_layers):
    config = dataclasses.replace(UNTIED, scan_layers=scan_layers)
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
    found = load_parameters(folder, config, mesh)
    model = parameters.abstract(lambda rngs: LanguageModel(config, rngs=rngs))
    shapes = parameters.split(model)[1]
    assert found.keys() == shapes.keys()
    for path, sharding in rules.parameter_shardings(shapes, parameters.logical_axes(model), mesh).items():
        assert found[path].sharding == sharding, path
        np.testing.assert_array_equal(found[path], load_parameters(folder, config)[path], err_msg=path)
    assert any(not value.is_fully_replicated for value in found.values())


def test_of_a_file_only_the_slices_of_this_host_s_devices_are_read(folder, monkeypatch):
    """Stacked layers, bfloat16 parameters from float32 files, eight devices: every number is read once."""
    read = []
    monkeypatch.setattr(Row, "read", lambda self, *args: read.append(values := _READ(self, *args)) or values)
    config = dataclasses.replace(UNTIED, scan_layers=True, param_dtype="bfloat16")
    found = load_parameters(folder, config, make_mesh(dict(data=2, fsdp=2, tensor=2)))
    cut = [value for value in found.values() if not value.is_fully_replicated]
    assert max(values.size for values in read) <= max(value.size // config.num_layers for value in cut)
    assert sum(values.size for values in read) == sum(value.size for value in found.values())
    assert {value.dtype for value in found.values()} == {jnp.dtype("bfloat16")}


_READ = Row.read


def test_adapters_are_no_part_of_a_checkpoint_and_are_saved_merged(untied, folder, tmp_path):
    lora = LoraConfig(rank=2, alpha=6.0, targets=("q", "down"))
    config = dataclasses.replace(UNTIED, lora=lora)
    base = load_parameters(folder, config)
    assert base.keys() == parameters.split(untied)[1].keys()
    graphdef, shapes, buffers = parameters.split(parameters.abstract(lambda rngs: LanguageModel(config, rngs=rngs)))
    values = {path: base.get(path, jnp.full(shape.shape, 0.1)) for path, shape in shapes.items()}
    adapted = parameters.merge(graphdef, values, buffers)
    save_language_model(adapted, tmp_path / "merged")
    merged = load_language_model(tmp_path / "merged")
    assert merged.config == UNTIED
    tokens = np.random.default_rng(0).integers(0, 24, (2, 9))
    valid = np.ones(tokens.shape, bool)
    np.testing.assert_allclose(_logits(merged, tokens, valid), _logits(adapted, tokens, valid), atol=1e-4)
    assert np.abs(_logits(merged, tokens, valid) - _logits(untied, tokens, valid)).max() > 0.01


def test_a_name_is_a_folder_or_a_model_of_the_hub(folder, monkeypatch, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs the [hub] extra")
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **how: asked.append((name, how)) or str(folder)
    )
    assert resolve(folder) == folder
    assert not asked
    assert load_config("some-org/model-1.5") == UNTIED
    assert load_language_model("some-org/model-1.5").config == UNTIED
    name, how = asked[0]
    assert name == "some-org/model-1.5"
    wanted = ("config.json", "tokenizer.json", "model.safetensors", "model-00001-of-00002.safetensors")
    for file in (*wanted, "model.safetensors.index.json"):
        assert any(fnmatch.fnmatch(file, pattern) for pattern in how["allow_patterns"]), file
    for file in ("pytorch_model.bin", "original/consolidated.00.pth", "onnx/model.onnx"):
        assert not any(fnmatch.fnmatch(file, pattern) for pattern in how["allow_patterns"]), file
    with pytest.raises(CheckpointError, match="no such folder; expected one, or a hub name such as"):
        resolve(tmp_path / "nowhere")


def test_a_hub_that_cannot_be_asked_is_an_error_that_says_what_to_do(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs the [hub] extra")

    def offline(name, **how):
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"org/model: .* offline mode is enabled.* download it elsewhere"):
        load_config("org/model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install -e '\.\[hub\]'"):
        load_config("org/model")


def test_weights_are_never_mixed_with_others(untied, folder):
    with pytest.raises(CheckpointError, match="already holds safetensors"):
        save_language_model(untied, folder)


def _edit_config(folder: Path, **changes) -> None:
    file = folder / "config.json"
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value != "absent"}))


def test_null_options_and_defaults_are_accepted(folder):
    _edit_config(folder, rope_scaling=None, attention_bias=False, head_dim=4, num_key_value_heads=2)
    assert load_config(folder) == UNTIED


def test_missing_left_over_and_misshapen_keys_are_named(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)

    def expect(message: str, **changes) -> None:
        changed = {key: value for key, value in (weights | changes).items() if value is not None}
        save_file(changed, file)
        with pytest.raises(CheckpointError, match=message):
            load_language_model(folder)

    key = "model.layers.1.mlp.up_proj.weight"
    expect(f"Missing: {key}. Left over: none", **{key: None})
    expect("Missing: none. Left over: model.extra", **{"model.extra": np.ones(2, np.float32)})
    expect(rf"{key} has shape \[20, 11\]; config.json makes it \[20, 12\]", **{key: weights[key][:, :11].copy()})
    expect(f"{key} has dtype I8", **{key: weights[key].astype(np.int8)})
    derived = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    save_file(weights | derived, file)
    assert load_language_model(folder).config == UNTIED


def test_a_broken_folder_says_what_is_wrong(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_language_model(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        load_language_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        load_language_model(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no weight_map"):
        load_language_model(folder)
    for text, message in (("{", "is damaged .*: fetch"), ("[]", "holds a list, not an object")):
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            load_language_model(folder)


@pytest.mark.parametrize("max_shard_bytes", [2000, 2**30], ids=["shards", "one_file"])
def test_content_is_what_loading_reads_and_nothing_else(untied, tmp_path, max_shard_bytes):
    folder = tmp_path / "saved"
    save_language_model(untied, folder, max_shard_bytes=max_shard_bytes)
    (folder / "README.md").write_text("a model")
    sums = content(folder)
    assert {path.name for path in folder.iterdir()} - sums.keys() == {"README.md"}
    for name in sums:
        (tmp_path / "part").mkdir()
        for other in sums.keys() - {name}:
            shutil.copyfile(folder / other, tmp_path / "part" / other)
        with pytest.raises(CheckpointError, match="has no"):
            load_language_model(tmp_path / "part")
        shutil.copyfile(folder / name, tmp_path / "part" / name)
        _same_parameters(load_language_model(tmp_path / "part"), untied)
        assert content(tmp_path / "part") == sums
        (tmp_path / "part" / name).write_bytes((folder / name).read_bytes() + b" ")
        assert [key for key, value in content(tmp_path / "part").items() if value != sums[key]] == [name]
        shutil.rmtree(tmp_path / "part")
    assert content(folder / "config.json") == {"config.json": sums["config.json"]}


def test_one_file_is_read_before_an_index_as_transformers_does(untied, tmp_path):
    save_language_model(untied, tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors.index.json").write_text("not read")
    _same_parameters(load_language_model(tmp_path / "saved"), untied)
    assert content(tmp_path / "saved").keys() == {"config.json", "model.safetensors"}


def test_a_missing_shard_is_named(untied, tmp_path):
    save_language_model(untied, tmp_path / "many", max_shard_bytes=2000)
    shutil.move(next((tmp_path / "many").glob("model-00002*")), tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="has no model-00002-of-"):
        load_language_model(tmp_path / "many")

"""Damaged and contradictory Hugging Face folders, tokenizers and PEFT adapters: file and key are named."""

import json
import shutil
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import user_llm
from tests.faults.harness import train
from user_llm.checkpoints.adapters import load_adapters, save_adapters
from user_llm.checkpoints.huggingface import load_language_model, load_parameters, save_language_model
from user_llm.data.vocabularies import load_vocabulary, train_sentencepiece
from user_llm.errors import UserError
from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel, LanguageModelConfig
from user_llm.models.lora import LoraConfig

CONFIG = LanguageModelConfig(
    vocab_size=300,
    num_layers=2,
    width=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    hidden=12,
    max_length=64,
    lora=LoraConfig(rank=2, alpha=4.0, targets=("q", "v")),
)
KEY = "model.layers.1.mlp.up_proj.weight"
ADAPTER = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FETCH = ": fetch or copy it anew"


@pytest.fixture(scope="session")
def sound(tmp_path_factory) -> Path:
    """`one` in one file, `shards` in several, `peft`, `json` (a tokenizer.json), and `run`, a workdir with `one`."""
    root = tmp_path_factory.mktemp("sound")
    train_sentencepiece(["Once upon a time there was a red ball"], 280, root / "tokenizer.model")
    graphdef, shapes, buffers = parameters.split(parameters.abstract(lambda rngs: LanguageModel(CONFIG, rngs=rngs)))
    random = np.random.default_rng(0)
    values = {path: jnp.asarray(random.normal(size=shape.shape), shape.dtype) for path, shape in shapes.items()}
    model = parameters.merge(graphdef, values, buffers)
    save_language_model(model, root / "one", root / "tokenizer.model")
    save_language_model(model, root / "shards", root / "tokenizer.model", max_shard_bytes=4000)
    save_adapters({path: value for path, value in values.items() if "/lora/" in path}, CONFIG, root / "peft")
    shutil.copytree(root / "one", root / "run" / "llm" / "huggingface")
    (root / "run" / "config.json").write_text('{"stages": ["llm"]}')
    _tokenizer_json(root / "json")
    return root


def _tokenizer_json(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    folder.mkdir()
    Tokenizer(models.WordLevel({"a": 0, "b": 1, "<end>": 2}, unk_token="a")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))


def edit(**changes):
    return lambda folder: _merge(folder / "config.json", changes)


def _merge(file: Path, changes: dict) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def write(name: str, content: str | bytes):
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def cut(name: str, share: float = 0.5):
    def fault(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])

    return fault


def lose(name: str):
    return lambda folder: (folder / name).unlink()


def make_folder(name: str):
    def fault(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return fault


def weights(change, name: str = WEIGHTS):
    """`change(tensors)` in place."""

    def fault(folder: Path) -> None:
        tensors = {key: value.copy() for key, value in load_file(folder / name).items()}
        change(tensors)
        save_file(tensors, folder / name)

    return fault


def spoil(value: float, key: str = KEY, dtype=None):
    def change(tensors: dict) -> None:
        if dtype is not None:
            tensors[key] = tensors[key].astype(dtype)
        tensors[key].flat[-1] = value

    return change


def index(change):
    def fault(folder: Path) -> None:
        values = json.loads((folder / INDEX).read_text())
        change(values)
        (folder / INDEX).write_text(json.dumps(values))

    return fault


def weight_map(value):
    return index(lambda values: values.update(weight_map=value))


def in_file(name):
    return index(lambda values: values["weight_map"].update({KEY: name}))


def twice(folder: Path) -> None:
    first, second = sorted(folder.glob("model-*.safetensors"))[:2]
    save_file(load_file(second) | {KEY: np.zeros((12, 8), np.float32)}, second)
    save_file(load_file(first) | {KEY: np.ones((12, 8), np.float32)}, first)


def header(**entry):
    """Another header entry of one tensor, its data left as they are."""

    def fault(folder: Path) -> None:
        whole = (folder / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", whole[:8])[0]
        values = json.loads(whole[8 : 8 + length])
        values[KEY] |= entry
        text = json.dumps(values).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])

    return fault


SLIDING = ["sliding_attention", "full_attention"]
NAN = f"model.safetensors: {KEY} holds NaN or infinity in float32{FETCH}"
CASES = {
    "g4_hf_nan": ("one", weights(lambda tensors: [t.fill(np.nan) for t in tensors.values()]), "holds NaN or infinity"),
    "g4_hf_nan1": ("one", weights(spoil(np.nan)), NAN),
    "g4_hf_inf1": ("one", weights(spoil(np.inf)), NAN),
    "-inf": ("one", weights(spoil(-np.inf)), NAN),
    "NaN in bfloat16": ("one", weights(spoil(np.nan, dtype=jnp.bfloat16)), NAN),
    "infinity in float16": ("one", weights(spoil(np.inf, dtype=np.float16)), NAN),
    "a float64 that no float32 holds": ("one", weights(spoil(1e300, dtype=np.float64)), NAN),
    "NaN in a shard": ("shards", lambda folder: weights(spoil(np.nan), shard(folder))(folder), f"{KEY} holds NaN"),
    "g4_hf_rope_garb": ("one", edit(rope_scaling="linear"), "rope_scaling is 'linear'; expected an object or null"),
    "rope_scaling a list": ("one", edit(rope_scaling=[2.0]), "rope_scaling is [2.0]; expected an object or null"),
    "rope_parameters a number": ("one", edit(rope_parameters=2), "rope_parameters is 2; expected an object or null"),
    "rope type a list": (
        "one",
        edit(rope_scaling={"rope_type": ["linear"]}),
        "is of type ['linear']; only the types",
    ),
    "rope factor a text": ("one", edit(rope_scaling={"type": "linear", "factor": "2"}), "rope_scaling.factor is '2'"),
    "rope factor below 1": ("one", edit(rope_scaling={"type": "linear", "factor": 1e-300}), "a number of at least 1"),
    "rope_theta below 1": ("one", edit(rope_theta=1e-300), "rope_theta is 1e-300; expected a number of at least 1"),
    "rope_theta infinite": ("one", edit(rope_theta=float("inf")), "rope_theta is inf; expected a number of at least 1"),
    "a part of heads turned": ("one", edit(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5; only 1.0"),
    "g4_hf_eps_none": ("one", edit(rms_norm_eps=None), "config.json: rms_norm_eps is None; expected a number above 0"),
    "rms_norm_eps NaN": ("one", edit(rms_norm_eps=float("nan")), "rms_norm_eps is nan; expected a number above 0"),
    "rms_norm_eps of no float": ("one", edit(rms_norm_eps=10**400), "expected a number above 0"),
    "tie_word_embeddings null": ("one", edit(tie_word_embeddings=None), "tie_word_embeddings is None; expected true"),
    "no layers": ("one", edit(num_hidden_layers=0), "num_hidden_layers is 0; expected a whole number from 1 to 1000"),
    "a billion layers": ("one", edit(num_hidden_layers=10**9), "expected a whole number from 1 to 1000"),
    "a width of no int": ("one", edit(hidden_size=2**62), "expected a whole number from 1 to 2147483647"),
    "more layers than weights": ("one", edit(num_hidden_layers=3), "Missing: model.layers.2."),
    "another width": ("one", edit(hidden_size=16), "config.json makes it"),
    "another vocabulary": ("one", edit(vocab_size=301), "embed_tokens.weight has shape [300, 8]"),
    "heads of keys": ("one", edit(num_key_value_heads=3), "config.json: 2 attention heads do not divide among 3"),
    "odd heads": ("one", edit(head_dim=3), "config.json: heads are 3 wide; expected an even number"),
    "g4_hf_family_gemma": ("one", edit(model_type="gemma"), "model_type is 'gemma', but architectures names Llama"),
    "a model_type that is a list": ("one", edit(model_type=["llama"]), "model_type is ['llama']; supported: llama"),
    "quantised": ("one", edit(quantization_config={"bits": 4}), "quantization_config is {'bits': 4}; only None"),
    "sliding layers in Qwen": (
        "one",
        edit(model_type="qwen2", architectures=None, layer_types=SLIDING),
        "layer_types is ['sliding_attention', 'full_attention']; only 'full_attention' is supported",
    ),
    "layer_types a number": (
        "one",
        edit(model_type="gemma2", architectures=None, layer_types=2),
        "layer_types is 2; expected 'sliding_attention' or 'full_attention' for each of the 2 layers",
    ),
    "sliding_window_pattern a text": (
        "one",
        edit(model_type="gemma3_text", architectures=None, sliding_window_pattern="6"),
        "sliding_window_pattern is '6'; expected a whole number",
    ),
    "text_config a list": (
        "one",
        edit(model_type="gemma3", architectures=None, text_config=[1]),
        "text_config is [1]; expected an object",
    ),
    "config.json cut": ("one", cut("config.json"), "config.json is damaged ("),
    "config.json empty": ("one", write("config.json", ""), "config.json is damaged ("),
    "config.json a list": (
        "one",
        write("config.json", "[1]"),
        "config.json is damaged (it holds a list",
    ),
    "config.json not UTF-8": ("one", write("config.json", b"\xff\xfe{}"), "config.json is damaged ("),
    "config.json all brackets": ("one", write("config.json", "[" * 100_000), "config.json is damaged ("),
    "config.json gone": ("one", lose("config.json"), "has no config.json: expected a Hugging Face model folder"),
    "weights cut": ("one", cut(WEIGHTS), "model.safetensors cannot be read, perhaps cut short"),
    "weights empty": ("one", write(WEIGHTS, ""), "model.safetensors cannot be read, perhaps cut short"),
    "weights of another format": ("one", write(WEIGHTS, b"PK\3\4" * 50), "model.safetensors cannot be read"),
    "weights gone": ("one", lose(WEIGHTS), "has no model.safetensors (a file)"),
    "g4_hf_dirsafe": ("one", make_folder(WEIGHTS), "has no model.safetensors (a file)"),
    "a header of another dtype": ("one", header(dtype="F8_E4M3"), "model.safetensors cannot be read"),
    "a header of no dtype": ("one", header(dtype="F7"), "model.safetensors cannot be read"),
    "a header of another shape": ("one", header(shape=[8, 12]), f"{KEY} has shape [8, 12]"),
    "a header beyond the file": ("one", header(data_offsets=[0, 10**12]), "model.safetensors cannot be read"),
    "weights of int8": ("one", weights(spoil(1, dtype=np.int8)), f"{KEY} has dtype I8; quantised weights"),
    "g4_hf_index_list": ("shards", weight_map([1, 2]), "index.json has no weight_map from keys to files"),
    "weight_map empty": ("shards", weight_map({}), "index.json has no weight_map from keys to files"),
    "g4_hf_index_int": ("shards", in_file(3), f"index.json: {KEY} is in 3; expected the name of a file beside it"),
    "g4_hf_index_slip": ("shards", in_file("../../../../etc/passwd"), "'../../../../etc/passwd'; expected the name"),
    "weight_map to an absolute path": ("shards", in_file("/etc/passwd"), "'/etc/passwd'; expected the name of a file"),
    "weight_map to the folder above": ("shards", in_file(".."), "'..'; expected the name of a file beside it"),
    "weight_map to no name": ("shards", in_file(""), "''; expected the name of a file beside it"),
    "weight_map to a lost file": ("shards", in_file("model-9.safetensors"), "has no model-9.safetensors (a file)"),
    "index cut": ("shards", cut(INDEX), "index.json is damaged ("),
    "a tensor in two shards": ("shards", twice, f"{KEY} stands in both "),
    "tokenizer.model cut": ("one", cut("tokenizer.model", 0.01), "tokenizer.model is not a SentencePiece model"),
    "tokenizer.model empty": ("one", write("tokenizer.model", ""), "tokenizer.model"),
    "tokenizer.model of text": ("one", write("tokenizer.model", "a b c"), "tokenizer.model is not a SentencePiece"),
    "tokenizer.model gone": ("one", lose("tokenizer.model"), "no tokenizer at "),
    "tokenizer.model a folder": ("one", make_folder("tokenizer.model"), "no tokenizer at "),
    "g4_hf_workdir": ("run", lambda _: None, "is a run's workdir: name its language model, "),
}


def shard(folder: Path) -> str:
    return json.loads((folder / INDEX).read_text())["weight_map"][KEY]


def damaged(sound: Path, folder: Path, kind: str, fault) -> Path:
    shutil.copytree(sound / kind, folder)
    fault(folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_model_is_named(case, sound, tmp_path):
    kind, fault, words = CASES[case]
    with pytest.raises(UserError) as error:
        user_llm.load_language_model(damaged(sound, tmp_path / kind, kind, fault))
    assert words in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert len(str(error.value)) < 1000


TAKEN = {
    "as it is": ("one", lambda _: None),
    "in shards": ("shards", lambda _: None),
    "g4_hf_unk_option": ("one", edit(some_future_option=5, auto_map={"AutoModel": "code.py"})),
    "null where it means what is left out": ("one", edit(rope_scaling=None, rope_parameters=None, head_dim=None)),
    "architectures of a fine-tuned model": ("one", edit(architectures=["MyLlamaForRewards"])),
    "architectures null": ("one", edit(architectures=None)),
    "the largest float32": ("one", weights(spoil(np.finfo(np.float32).max))),
    "in float64": ("one", weights(spoil(1.0, dtype=np.float64))),
    "more files": ("one", write("pytorch_model.bin", "not read")),
}


@pytest.mark.parametrize("case", TAKEN)
def test_a_sound_model_is_taken(case, sound, tmp_path):
    kind, change = TAKEN[case]
    folder = damaged(sound, tmp_path / kind, kind, change)
    assert load_parameters(folder, user_llm.load_language_model(folder).config)


@pytest.mark.parametrize("dtype", ["float8", "int32", "float16", 32, None, "", jnp.float32])
def test_g4_hf_dtype(dtype, sound):
    for name in ("dtype", "param_dtype"):
        with pytest.raises(UserError, match=f"{name} must be 'float32' or 'bfloat16', got "):
            user_llm.load_language_model(sound / "one", **{name: dtype})


def test_a_number_that_bfloat16_cannot_hold_is_named_at_loading(sound, tmp_path):
    """Rounded up, float32's largest is infinite."""
    folder = damaged(sound, tmp_path / "one", "one", weights(spoil(np.finfo(np.float32).max)))
    with pytest.raises(UserError, match=f"{KEY} holds NaN or infinity in bfloat16"):
        user_llm.load_language_model(folder, param_dtype="bfloat16")


def test_of_stacked_layers_the_one_is_named(sound, tmp_path):
    folder = damaged(sound, tmp_path / "one", "one", weights(spoil(np.nan)))
    with pytest.raises(UserError, match=f"{KEY} holds NaN or infinity in bfloat16"):
        load_language_model(folder, scan_layers=True, param_dtype="bfloat16")


def settings(**changes):
    return lambda folder: _merge(folder / "adapter_config.json", changes)


def adapter(change):
    return weights(change, "adapter_model.safetensors")


PEFT = {
    "NaN": (adapter(spoil(np.nan, ADAPTER)), f"adapter_model.safetensors: {ADAPTER} holds NaN or infinity in float32"),
    "NaN in bfloat16": (adapter(spoil(np.nan, ADAPTER, jnp.bfloat16)), f"{ADAPTER} holds NaN or infinity"),
    "int8": (adapter(spoil(1, ADAPTER, np.int8)), f"{ADAPTER} has dtype I8; quantised weights"),
    "a tensor gone": (adapter(lambda tensors: tensors.pop(ADAPTER)), f"{ADAPTER} is missing"),
    "weights cut": (cut("adapter_model.safetensors"), "adapter_model.safetensors cannot be read, perhaps cut short"),
    "weights a folder": (make_folder("adapter_model.safetensors"), "adapter_model.safetensors is missing"),
    "settings cut": (cut("adapter_config.json"), "adapter_config.json is damaged ("),
    "settings a list": (write("adapter_config.json", "[]"), "adapter_config.json is damaged (it holds a list"),
    "settings gone": (lose("adapter_config.json"), "adapter_config.json is missing"),
    "another rank": (settings(r=4), "adapter_config.json: r is 4; this model needs 2"),
    "rank a text": (settings(r="2"), "r is '2'; this model needs 2"),
    "no alpha": (settings(lora_alpha=None), "lora_alpha is None; this model needs 4.0"),
    "DoRA": (settings(use_dora=True), "use_dora is True; this model needs False"),
    "layers repeated": (settings(layer_replication=[[0, 2], [1, 2]]), "layer_replication is [[0, 2], [1, 2]]"),
    "activated by words": (settings(alora_invocation_tokens=[5]), "alora_invocation_tokens is [5]; this model needs"),
    "PiSSA": (settings(init_lora_weights="pissa_niter_4"), "init_lora_weights is 'pissa_niter_4', which changes the"),
    "another method": (settings(peft_type="LOHA"), "peft_type is 'LOHA'; this model needs 'LORA'"),
}


@pytest.mark.parametrize("case", PEFT)
def test_damaged_adapters_are_named(case, sound, tmp_path):
    fault, words = PEFT[case]
    with pytest.raises(UserError) as error:
        load_adapters(damaged(sound, tmp_path / "peft", "peft", fault), CONFIG)
    assert words in str(error.value)
    assert str(tmp_path) in str(error.value)


NO_WORDS = {"type": "WordLevel", "vocab": {}, "unk_token": "a"}
TOKENIZERS = {
    "tokenizer.json cut": (cut("tokenizer.json"), "tokenizer.json is not a tokenizer of the `tokenizers` library"),
    "tokenizer.json empty": (write("tokenizer.json", ""), "tokenizer.json is not a tokenizer of the `tokenizers`"),
    "tokenizer.json not UTF-8": (write("tokenizer.json", b"\xff"), "tokenizer.json is not a tokenizer of the"),
    "tokenizer.json without tokens": (
        lambda folder: _merge(
            folder / "tokenizer.json", {"model": {"type": "WordLevel", "vocab": {}, "unk_token": ""}}
        ),
        "eos_token is '<end>', which tokenizer.json does not have",
    ),
    "settings cut": (cut("tokenizer_config.json"), "tokenizer_config.json is damaged ("),
    "settings a folder": (make_folder("tokenizer_config.json"), "tokenizer_config.json"),
    "no end": (write("tokenizer_config.json", "{}"), "nothing beside "),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_damaged_tokenizer_is_named(case, sound, tmp_path):
    fault, words = TOKENIZERS[case]
    with pytest.raises((UserError, OSError)) as error:
        load_vocabulary(damaged(sound, tmp_path / "json", "json", fault))
    assert isinstance(error.value, UserError) or error.value.filename is not None
    assert words in str(error.value)


RUNS = {
    "g4m_nan": ("one", weights(spoil(np.nan)), NAN),
    "g4_hf_workdir": ("run", lambda _: None, "is a run's workdir: name its language model, "),
    "config.json cut": ("one", cut("config.json"), "config.json is damaged ("),
    "tokenizer.model of text": (
        "one",
        write("tokenizer.model", "a b c"),
        "tokenizer.model is not a SentencePiece",
    ),
}


@pytest.mark.parametrize("case", RUNS)
def test_a_run_on_it_ends_with_one_line(case, sound, tmp_path):
    kind, fault, words = RUNS[case]
    folder = damaged(sound, tmp_path / kind, kind, fault)
    values = {"llm.checkpoint": folder, "encoder.init": "random", "stages": "('user_llm',)"}
    values |= {"data.data_dir": tmp_path / "data", "data.simulated.num_users": 30, "data.simulated.num_items": 100}
    values |= {"prompt.max_inputs": 40, "prompt.max_targets": 10}
    arguments = [f"--config.{key}={value}" for key, value in values.items()]
    outcome = train("--config=configs/simulated.py", f"--workdir={tmp_path / 'W'}", *arguments, folder=tmp_path)
    outcome.check(1, "error: ", words)

"""GGUF files, written as llama.cpp's converter does and held to `transformers`: the model itself, and its loader."""

import dataclasses
import math
import os
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf.quants import dequantize

import user_llm
from tests.gguf_files import TINY_LLAMA, converted, write_gguf
from tests.transformers_models import randomise
from user_llm import schema
from user_llm.checkpoints.gguf.names import PLAIN, Place
from user_llm.checkpoints.gguf.options import read_options
from user_llm.checkpoints.gguf.weights import Slice
from user_llm.checkpoints.huggingface import (
    CheckpointError,
    content,
    load_config,
    load_language_model,
    load_parameters,
    resolve,
)
from user_llm.config import missing_files
from user_llm.gguf_header import KINDS, TensorInfo, read_header
from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel, causal_mask
from user_llm.parallel import rules
from user_llm.parallel.mesh import make_mesh

DIMS = dict(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, max_position_embeddings=64)
HEADS = dict(num_attention_heads=4, num_key_value_heads=2)
# Heads are as wide as `transformers`' GGUF loader takes for granted of a Qwen3 (128) or Gemma (256).
WIDE = dict(num_attention_heads=2, num_key_value_heads=1, head_dim=256, sliding_window=8)
MODELS = {
    "llama": ("Llama", DIMS | HEADS | dict(tie_word_embeddings=False)),
    "llama_biased": ("Llama", DIMS | HEADS | dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True)),
    "qwen2": ("Qwen2", DIMS | HEADS | dict(tie_word_embeddings=True)),
    "qwen3": ("Qwen3", DIMS | HEADS | dict(head_dim=128, tie_word_embeddings=True)),
    "gemma": ("Gemma", DIMS | HEADS | dict(head_dim=32)),
    "gemma2": ("Gemma2", DIMS | WIDE),
    "gemma3": (
        "Gemma3Text",
        DIMS
        | WIDE
        | dict(num_hidden_layers=6)  # the last is global
        | dict(
            rope_parameters=dict(
                full_attention=dict(rope_type="default", rope_theta=1e5),
                sliding_attention=dict(rope_type="default", rope_theta=1e4),
            )
        ),
    ),
    "gpt2": ("GPT2", dict(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=1024)),
}
# Which `transformers` reads from GGUF; of GPT-2's, those with 1024 positions.
THEIRS = [name for name in MODELS if name not in ("gemma", "llama_biased")]
TOKENS, NEW = 10, 6


def build(name: str, **changes):
    """A model of `transformers` with random weights, at which logits are of order 1 and norms and biases are felt."""
    pytest.importorskip("torch", reason="needs the [test] extra's torch")
    transformers = pytest.importorskip("transformers", reason="needs the [test] extra's transformers")
    kind, options = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**(options | changes))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomise(model)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    return model


@pytest.fixture(scope="module", params=list(MODELS))
def family(request, tmp_path_factory):
    """A model and its GGUF file, in float32."""
    model = build(request.param)
    file = tmp_path_factory.mktemp(request.param) / "model.gguf"
    write_gguf(file, *converted(model))
    return SimpleNamespace(name=request.param, theirs=model, file=file)


def their_text(model) -> np.ndarray:
    """What it says on its own behind some tokens: `[1, TOKENS + NEW]`."""
    torch = pytest.importorskip("torch")
    prompt = torch.from_numpy(np.random.default_rng(0).integers(3, 90, (1, TOKENS)))
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False).numpy()


def their_logits(model, tokens: np.ndarray) -> np.ndarray:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


@jax.jit
def our_logits(model: LanguageModel, tokens: np.ndarray) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = model(tokens, positions, causal_mask(jnp.ones(tokens.shape, bool)))
    return model.logits(hidden)


def assert_same_model(ours: LanguageModel, theirs, within: float = 1e-5) -> None:
    """Logits, to a share of the largest, and so the greedy text."""
    text = their_text(theirs)
    expected, found = their_logits(theirs, text), np.asarray(our_logits(ours, text))
    assert expected.std() > 0.3
    np.testing.assert_allclose(found, expected, rtol=0, atol=within * np.abs(expected).max())
    np.testing.assert_array_equal(found[:, TOKENS - 1 : -1].argmax(axis=-1), text[:, TOKENS:])


def test_a_converted_model_computes_what_the_model_does(family):
    assert_same_model(load_language_model(family.file, scan_layers=True), family.theirs)


KIND_OF = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16")


@pytest.mark.parametrize("name", THEIRS)
def test_a_quantised_file_computes_what_transformers_reads_from_it(name, tmp_path):
    """Every kind of number that the `gguf` library writes; the loader of `transformers` says what they mean."""
    transformers = pytest.importorskip("transformers", reason="needs the [test] extra's transformers")
    torch = pytest.importorskip("torch", reason="needs the [test] extra's torch")
    architecture, values, tensors = converted(build(name))
    matrices = [name for name, tensor in tensors.items() if tensor.ndim == 2 and name != "position_embd.weight"]
    kinds = {name: KIND_OF[place % len(KIND_OF)] for place, name in enumerate(matrices)}
    kinds |= {matrices[0]: "Q8_0"}
    file = write_gguf(tmp_path / "model.gguf", architecture, values | VOCABULARY, tensors, kinds)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager"
    )
    theirs.generation_config.eos_token_id = theirs.generation_config.pad_token_id = None
    assert_same_model(load_language_model(file, scan_layers=True), theirs)


VOCABULARY = {"tokenizer.ggml.tokens": [f"piece {place}" for place in range(96)]}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", dict(rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=1e4))),
        ("llama", dict(head_dim=32, num_key_value_heads=4)),
        ("gemma3", dict(head_dim=16, query_pre_attn_scalar=16, num_hidden_layers=2)),
        ("gemma2", dict(head_dim=16, query_pre_attn_scalar=16, final_logit_softcapping=3.0, sliding_window=4)),
    ],
)
def test_options_that_the_loader_of_transformers_leaves_out(name, changes, tmp_path):
    model = build(name, **changes)
    file = write_gguf(tmp_path / "model.gguf", *converted(model))
    assert_same_model(load_language_model(file, scan_layers=True), model)


def test_llama_3_s_rope_factors_become_its_scaling(tmp_path):
    """The factors are the ones `transformers` divides its frequencies by."""
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama", reason="needs transformers and torch")
    scaling = dict(
        rope_type="llama3",
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
        rope_theta=5e5,
    )
    model = build("llama", head_dim=64, max_position_embeddings=131072, rope_parameters=scaling)
    scaled = modeling.LlamaRotaryEmbedding(model.config).inv_freq.numpy()
    factors = (5e5 ** -(np.arange(0, 64, 2) / 64) / scaled).astype(np.float32)
    assert factors.min() == pytest.approx(1)
    assert factors.max() == pytest.approx(32)
    architecture, values, tensors = converted(model)
    write_gguf(tmp_path / "a.gguf", architecture, values, tensors | {"rope_freqs.weight": factors})
    assert_same_model(load_language_model(tmp_path / "a.gguf", scan_layers=True), model)
    write_gguf(tmp_path / "b.gguf", architecture, values, tensors | {"rope_freqs.weight": factors[::-1]})
    with pytest.raises(CheckpointError, match=r"b\.gguf: rope_freqs\.weight holds factors of no Llama 3"):
        load_config(tmp_path / "b.gguf")
    write_gguf(tmp_path / "c.gguf", architecture, values, tensors | {"rope_freqs.weight": np.ones(32)})
    assert load_config(tmp_path / "c.gguf").rope_scaling is None


@pytest.mark.parametrize("number", KINDS)
def test_numbers_of_every_kind_are_those_of_the_gguf_library(number, tmp_path):
    """Blocks of random bytes, any rows and columns of them."""
    kind = KINDS[number]
    theirs = gguf.GGMLQuantizationType(number)
    assert (theirs.name, gguf.GGML_QUANT_SIZES[theirs]) == (kind.name, (kind.numbers, kind.bytes))
    blocks = np.random.default_rng(number).integers(0, 60, (700, 2 * kind.bytes), np.uint8)
    (tmp_path / "numbers").write_bytes(b"before" + blocks.tobytes() + b"behind")
    whole = dequantize(blocks, theirs)
    assert np.isfinite(whole).all()
    info = TensorInfo("t", whole.shape, kind, 6, blocks.nbytes)
    file = os.open(tmp_path / "numbers", os.O_RDONLY)
    try:
        for dtype in (np.dtype("float32"), jnp.dtype("bfloat16")):
            found = Slice(file, tmp_path, info, Place("t"), 0, dtype)
            for rows in (slice(None), slice(3, 699), slice(5, 5)):
                for columns in (slice(None), slice(1, -1)):
                    np.testing.assert_array_equal(found[rows, columns], whole[rows, columns].astype(dtype))
    finally:
        os.close(file)


def test_a_tensor_takes_little_more_memory_than_its_numbers(tmp_path):
    """Of a dtype of half the bytes, into which they come a part at a time."""
    kind, shape = KINDS[8], (4096, 2048)
    (tmp_path / "numbers").write_bytes(bytes(4096 * 2048 // kind.numbers * kind.bytes))
    file = os.open(tmp_path / "numbers", os.O_RDONLY)
    found = Slice(file, tmp_path, TensorInfo("t", shape, kind, 0, 0), Place("t"), 0, jnp.dtype("bfloat16"))
    found[slice(0, 1), slice(None)]  # imports
    tracemalloc.start()
    try:
        numbers = found[slice(None), slice(None)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        os.close(file)
    assert peak < 1.3 * numbers.nbytes


def test_rows_are_read_as_they_are_needed(tmp_path, monkeypatch):
    """Of a tensor of four million numbers, those of a slice, a part at a time."""
    values = np.arange(4096 * 1024, dtype=np.float32).reshape(4096, 1024)
    (tmp_path / "numbers").write_bytes(values.tobytes())
    read = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, start: read.append(size) or pread(file, size, start))
    file = os.open(tmp_path / "numbers", os.O_RDONLY)
    found = Slice(
        file, tmp_path, TensorInfo("t", values.shape, KINDS[0], 0, values.nbytes), Place("t"), 0, values.dtype
    )
    np.testing.assert_array_equal(found[slice(1024, 3072), slice(None)], values[1024:3072])
    os.close(file)
    assert sum(read) == values.nbytes // 2
    assert max(read) < 2**21


def test_onto_a_mesh_each_parameter_comes_as_the_rules_cut_it(family):
    config = dataclasses.replace(load_config(family.file), scan_layers=True, param_dtype="bfloat16")
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
    found, whole = load_parameters(family.file, config, mesh), load_parameters(family.file, config)
    model = parameters.abstract(lambda rngs: LanguageModel(config, rngs=rngs))
    shapes = parameters.split(model)[1]
    assert found.keys() == whole.keys() == shapes.keys()
    for path, sharding in rules.parameter_shardings(shapes, parameters.logical_axes(model), mesh).items():
        assert found[path].sharding == sharding, path
        assert found[path].dtype == whole[path].dtype == jnp.bfloat16, path
        np.testing.assert_array_equal(found[path], whole[path], err_msg=path)


LLAMA_TENSORS = {
    "token_embd.weight": (16, 8),
    "output_norm.weight": (8,),
    **{f"blk.0.{name}.weight": (8, 8) for name in ("attn_q", "attn_k", "attn_v", "attn_output")},
    **{f"blk.0.{name}.weight": (12, 8) for name in ("ffn_gate", "ffn_up")},
    "blk.0.ffn_down.weight": (8, 12),
    **{f"blk.0.{name}.weight": (8,) for name in ("attn_norm", "ffn_norm")},
}


def write_llama(file: Path, architecture: str = "llama", tensors: dict | None = None, **values) -> Path:
    """Our smallest; a value of None takes a key away."""
    said = TINY_LLAMA | {f"llama.{key.replace('__', '.')}": value for key, value in values.items()}
    shapes = LLAMA_TENSORS | (tensors or {})
    random = np.random.default_rng(0)
    return write_gguf(
        file,
        architecture,
        {key: value for key, value in said.items() if value is not None},
        {name: random.normal(size=shape) for name, shape in shapes.items() if shape is not None},
    )


def test_what_is_not_said_is_what_llama_cpp_assumes(tmp_path):
    config = load_config(write_llama(tmp_path / "a.gguf"))
    assert (config.num_kv_heads, config.head_dim, config.rope_theta, config.tie_embeddings) == (2, 4, 1e4, True)
    assert (config.vocab_size, config.max_length, config.rope_scaling) == (16, 32, None)
    assert resolve(tmp_path / "a.gguf") == tmp_path / "a.gguf"
    assert [*content(tmp_path / "a.gguf")] == ["a.gguf"]
    untied = write_llama(tmp_path / "b.gguf", tensors={"output.weight": (16, 8)}, rope__scaling__type="none")
    assert not load_config(untied).tie_embeddings
    assert load_language_model(untied).config == load_config(untied)


def test_gemma_s_largest_models_scale_their_queries_otherwise(tmp_path):
    """By width / heads, as llama.cpp knows from their layers."""
    values = {key.replace("llama", "gemma2"): value for key, value in TINY_LLAMA.items()}
    values |= {"gemma2.attention.sliding_window": 8, "gemma2.attention.key_length": 16}
    tensors = {"token_embd.weight": np.ones((4, 8))}
    for layers, scalar in ((26, 16), (46, 4)):
        file = write_gguf(tmp_path / "g.gguf", "gemma2", values | {"gemma2.block_count": layers}, tensors)
        assert load_config(file).query_scale == pytest.approx(scalar**-0.5)


def test_layers_with_a_window_are_as_listed(tmp_path):
    values = {key.replace("llama", "gemma3"): value for key, value in TINY_LLAMA.items()} | {"gemma3.block_count": 3}
    values |= {"gemma3.attention.sliding_window": 8}
    tensors = {"token_embd.weight": np.ones((4, 8))}
    key = "gemma3.attention.sliding_window_pattern"
    listed = write_gguf(tmp_path / "a.gguf", "gemma3", values | {key: [True, False, True]}, tensors)
    assert load_config(listed).local_layers == (True, False, True)
    every = write_gguf(tmp_path / "b.gguf", "gemma3", values | {key: 2}, tensors)
    assert load_config(every).local_layers == (True, False, True)
    assert load_config(write_gguf(tmp_path / "c.gguf", "gemma3", values, tensors)).local_layers == (True,) * 3


REFUSED = [
    (
        dict(architecture="mamba"),
        "general.architecture is 'mamba'; supported: llama, qwen2, qwen3, gemma, gemma2",
    ),
    (dict(block_count=None), r"has no llama\.block_count"),
    (dict(block_count="two"), "num_hidden_layers is 'two'; expected a whole number"),
    (dict(attention__head_count=[2, 2]), r"num_attention_heads is \[2, 2\]; expected a whole number"),
    (dict(attention__key_length="4"), "key_length is '4'; expected a whole number"),
    (dict(attention__value_length=8), "attention.value_length is 8; only the 4"),
    (dict(rope__dimension_count=2), "rope.dimension_count is 2; only the 4"),
    (dict(rope__scaling__type="yarn", rope__scaling__factor=4.0), "'yarn'; only the types 'default'"),
    (dict(rope__scaling__factor="4"), "rope_scaling.factor is '4'; expected a number"),
    (dict(expert_count=8), "llama.expert_count is 8; only 0 is supported"),
    (dict(attention__scale=0.5), "llama.attention.scale is 0.5; this key is not supported"),
    (dict(tensors={"token_embd.weight": None}), "has no tensor token_embd.weight"),
    (dict(tensors={"output_norm.weight": None}), r"what its metadata say. Missing: model.norm.weight. Left over: none"),
    (dict(tensors={"blk.0.ffn_gate_inp.weight": (8, 8)}), "Left over: blk.0.ffn_gate_inp.weight"),
    (
        dict(tensors={"blk.0.attn_k.weight": (4, 8)}),
        r"k_proj.weight has shape \[4, 8\]; what its metadata say",
    ),
    (dict(tensors={"output_norm.weight": (2, 2, 2)}), r"model.norm.weight has shape \[2, 2, 2\]"),
    (dict(tensors={"rope_freqs.weight": (3,)}), r"rope_freqs.weight is F32 \[3\]; expected F32 \[2\]"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_we_do_not_compute_is_refused_by_name(changes, message, tmp_path):
    file = write_llama(tmp_path / "model.gguf", **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        load_language_model(file)
    assert str(file) in str(error.value)


def test_numbers_that_are_none_are_found(tmp_path):
    values = np.ones((16, 8))
    values[7, 3] = math.nan
    tensors = {name: np.ones(shape) for name, shape in LLAMA_TENSORS.items()} | {"token_embd.weight": values}
    file = write_gguf(tmp_path / "model.gguf", "llama", TINY_LLAMA, tensors)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight holds NaN or infinity"):
        load_language_model(file)


def test_a_file_cut_short_as_it_is_read_is_named(tmp_path):
    file = write_llama(tmp_path / "model.gguf")
    info = read_header(file).tensors["token_embd.weight"]
    with file.open("r+b") as opened:
        opened.truncate(info.start + 8)
        found = Slice(opened.fileno(), file, info, PLAIN.place(info.name), 0, np.dtype("float32"))
        with pytest.raises(CheckpointError, match=r"has been cut short while token_embd\.weight was"):
            found[slice(None), slice(None)]


def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path):
    for name in (tmp_path / "none.gguf", "organisation/model.gguf"):
        with pytest.raises(CheckpointError, match=r"\.gguf: no such file; expected a GGUF file"):
            load_language_model(name)


def test_model_and_tokenizer_of_one_file_are_saved_as_a_folder(tmp_path):
    tokenizer = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "▁ab", *"cdefghij"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -1.0, -2.0, *[-9.0] * 8],
        "tokenizer.ggml.token_type": [2, 3, 3, *[1] * 13],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    random = np.random.default_rng(0)
    tensors = {name: random.normal(size=shape) for name, shape in LLAMA_TENSORS.items()}
    read = user_llm.load_language_model(write_gguf(tmp_path / "a.gguf", "llama", TINY_LLAMA | tokenizer, tensors))
    read.save(tmp_path / "saved")
    again = user_llm.load_language_model(tmp_path / "saved")
    assert again.tokenizer == read.tokenizer
    assert again.config.max_length == read.config.max_length == 32
    tokens = np.array([[1, *read.tokenizer.encode("ab a"), 2]])
    assert tokens.tolist() == [[1, 7, 6, 2]]
    np.testing.assert_array_equal(again.logits(tokens), read.logits(tokens))
    assert again.generate("ab", 5) == read.generate("ab", 5)


def test_a_config_may_name_a_file_that_is_there(tmp_path):
    file = write_llama(tmp_path / "a.gguf")

    def missing(name: str) -> list[str]:
        config = schema.get_config()
        config.llm.checkpoint = name
        return [*missing_files(config)]

    assert not missing(str(file))
    for name in (str(tmp_path / "none.gguf"), "organisation/none.gguf"):
        (line,) = missing(name)
        assert line.endswith(
            "no such file; expected organisation/model of the hub, or a folder with config.json, "
            "weights and tokenizer, or a GGUF file"
        )


def test_a_converter_s_extra_keys_change_nothing(tmp_path):
    plain = read_options(read_header(write_llama(tmp_path / "a.gguf")))
    more = write_llama(tmp_path / "b.gguf", vocab_size=99, expert_count=0, attention__causal=True)
    assert read_options(read_header(more)) == plain

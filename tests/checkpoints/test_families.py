"""Every family of open language models against `transformers`: tiny ones, with weights at which each option matters."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.transformers_models import randomise
from user_llm.checkpoints.families import read_config, write_config
from user_llm.checkpoints.huggingface import (
    CheckpointError,
    load_config,
    load_language_model,
    load_parameters,
    save_language_model,
)
from user_llm.decoding.generate import generate
from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel, LanguageModelConfig, causal_mask

PRESETS = sorted((Path(__file__).parents[2] / "configs" / "llm").glob("*.json"))
TOKENS, PROMPT = 22, 14

DIMS = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, intermediate_size=40)
HEADS = dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
LOCAL = dict(layer_types=["sliding_attention", "full_attention"], sliding_window=5)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0) | dict(
    original_max_position_embeddings=16
)
# name → (class of the config, its options). Caps and windows are small enough to be felt.
MODELS = {
    "llama": ("Llama", DIMS | HEADS | dict(rope_parameters=LLAMA3, head_dim=16, attention_bias=True, mlp_bias=True)),
    "llama_linear": (
        "Llama",
        DIMS | HEADS | dict(rope_parameters=dict(rope_type="linear", factor=4.0), hidden_act="gelu"),
    ),
    "qwen2": ("Qwen2", DIMS | HEADS | dict(rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "qwen3": ("Qwen3", DIMS | HEADS | dict(head_dim=16, tie_word_embeddings=True)),
    "gemma": ("Gemma", DIMS | HEADS | dict(head_dim=16)),
    "gemma2": (
        "Gemma2",
        DIMS
        | HEADS
        | LOCAL
        | dict(head_dim=16, query_pre_attn_scalar=24, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    ),
    "gemma3": (
        "Gemma3Text",
        DIMS
        | HEADS
        | LOCAL
        | dict(head_dim=16, query_pre_attn_scalar=24)
        | dict(
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e5),
                sliding_attention=dict(rope_type="default", rope_theta=100.0),
            )
        ),
    ),
    "gpt2": ("GPT2", dict(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
}


@pytest.fixture(scope="module", params=list(MODELS))
def family(request, tmp_path_factory):
    """A model of transformers, its folder, and some texts: one padded on the left, one on the right."""
    torch = pytest.importorskip("torch", reason="needs the [test] extra's torch")
    transformers = pytest.importorskip("transformers", reason="needs the [test] extra's transformers")
    name, options = MODELS[request.param]
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**options)).eval()
    randomise(model)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    tokens = np.random.default_rng(0).integers(0, 96, (2, TOKENS))
    valid = np.ones(tokens.shape, bool)
    valid[0, :7] = valid[1, -5:] = False
    return SimpleNamespace(theirs=model, folder=folder, tokens=tokens, valid=valid, torch=torch)


def their_logits(model, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    torch = pytest.importorskip("torch")
    positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0)
    with torch.no_grad():
        out = model(
            torch.from_numpy(tokens),
            attention_mask=torch.from_numpy(valid.astype(np.int64)),
            position_ids=torch.from_numpy(positions),
        )
    return out.logits.numpy()


@jax.jit
def our_logits(model, tokens, valid):
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    hidden, _ = model(tokens, positions, causal_mask(valid))
    return model.logits(hidden)


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
def test_logits_equal_transformers(family, scan_layers):
    model = load_language_model(family.folder, scan_layers=scan_layers)
    expected = their_logits(family.theirs, family.tokens, family.valid)
    assert 0.5 < expected.std() < 20
    found = our_logits(model, family.tokens, family.valid)
    np.testing.assert_allclose(found[family.valid], expected[family.valid], atol=1e-4, rtol=0)


def test_greedy_text_with_a_cache_equals_full_passes_and_transformers(family):
    model, torch = load_language_model(family.folder, scan_layers=True), family.torch
    lengths, new = np.array([PROMPT, 9]), TOKENS - PROMPT
    prompts = np.where(np.arange(PROMPT) < lengths[:, None], family.tokens[:, :PROMPT], 0)
    found = np.asarray(generate(model, prompts, lengths, max_new_tokens=new, eos_id=-1))

    whole = np.zeros_like(family.tokens)
    for row, prompt, length, text in zip(whole, prompts, lengths, found, strict=True):
        row[: length + new] = [*prompt[:length], *text]
    argmax = np.argmax(our_logits(model, whole, np.arange(TOKENS) < lengths[:, None] + new), axis=-1)
    for row, length, text in zip(argmax, lengths, found, strict=True):
        np.testing.assert_array_equal(row[length - 1 : length + new - 1], text)

    padded = np.stack([np.roll(row, PROMPT - length) for row, length in zip(prompts, lengths, strict=True)])
    seen = np.arange(PROMPT) >= PROMPT - lengths[:, None]
    family.theirs.generation_config.eos_token_id = None
    theirs = family.theirs.generate(
        torch.from_numpy(padded),
        attention_mask=torch.from_numpy(seen.astype(np.int64)),
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
    )
    np.testing.assert_array_equal(found, theirs[:, PROMPT:].numpy())


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
def test_what_we_save_transformers_loads_as_the_same_model(family, scan_layers, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = load_language_model(family.folder, scan_layers=scan_layers)
    save_language_model(model, tmp_path, max_shard_bytes=20_000)
    back, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=family.torch.float32, output_loading_info=True
    )
    assert type(back) is type(family.theirs)
    assert not any(report.values()), report
    expected = their_logits(family.theirs, family.tokens, family.valid)
    np.testing.assert_array_equal(their_logits(back, family.tokens, family.valid), expected)
    assert load_config(tmp_path) == load_config(family.folder)


def test_a_multimodal_gemma_gives_its_text_model(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the [test] extra's transformers")
    pytest.importorskip("torch", reason="needs the [test] extra's torch")
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    config = transformers.Gemma3Config(
        text_config=MODELS["gemma3"][1], vision_config=vision | dict(patch_size=14), mm_tokens_per_image=4
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    randomise(model)
    model.save_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 90, (2, TOKENS))
    valid = np.ones(tokens.shape, bool)
    ours = load_language_model(tmp_path)
    np.testing.assert_allclose(our_logits(ours, tokens, valid), their_logits(model, tokens, valid), atol=1e-4, rtol=0)
    # As it is called inside transformers 5; its files keep the names of the hub.
    weights = load_file(tmp_path / "model.safetensors")
    inside = {key.replace("language_model.model.", "model.language_model."): value for key, value in weights.items()}
    assert inside.keys() != weights.keys()
    save_file(inside, tmp_path / "model.safetensors")
    assert_same_parameters(load_parameters(tmp_path, ours.config), parameters.split(ours)[1])


def assert_same_parameters(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def random_model(folder: Path, options: dict) -> LanguageModel:
    """Our own model of a config.json, no transformers needed."""
    (folder / "config.json").write_text(json.dumps(options))
    config = load_config(folder)
    graphdef, shapes, buffers = parameters.split(parameters.abstract(lambda rngs: LanguageModel(config, rngs=rngs)))
    random = np.random.default_rng(0)
    values = {path: jnp.asarray(random.normal(size=shape.shape), shape.dtype) for path, shape in shapes.items()}
    return parameters.merge(graphdef, values, buffers)


def test_gpt2_as_openai_left_it_loads(tmp_path):
    """Without the prefix "transformer." and with the buffers of its causal mask."""
    model = random_model(tmp_path, dict(model_type="gpt2", **MODELS["gpt2"][1]))
    save_language_model(model, tmp_path / "saved")
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    bare = {key.removeprefix("transformer."): value for key, value in weights.items()}
    bare |= {"h.0.attn.bias": np.ones((1, 1, 8, 8), np.float32), "h.1.attn.masked_bias": np.float32([-1e4])}
    save_file(bare, tmp_path / "saved" / "model.safetensors")
    assert_same_parameters(load_parameters(tmp_path / "saved", model.config), parameters.split(model)[1])


def test_a_head_stored_beside_tied_embeddings_is_not_read(tmp_path):
    """As in Qwen3-0.6B's file. Untied, it is the head."""
    options = dict(model_type="qwen3", head_dim=16, **DIMS, **HEADS)
    model = random_model(tmp_path, options | dict(tie_word_embeddings=True))
    save_language_model(model, tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    head = np.ones((96, 32), np.float32)
    save_file(load_file(file) | {"lm_head.weight": head}, file)
    assert_same_parameters(load_parameters(tmp_path / "saved", model.config), parameters.split(model)[1])
    untied = dataclasses.replace(model.config, tie_embeddings=False)
    np.testing.assert_array_equal(load_parameters(tmp_path / "saved", untied)["head_VD"], head)


PUBLISHED = {
    "smollm2_135m": 134_515_008,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "qwen3_0_6b": 596_049_920,
    "llama3_2_1b": 1_235_814_400,
    "gpt2": 124_439_808,
    "tiny": 1_311_872,  # ours, counted by hand
}


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_presets_have_the_published_number_of_parameters(file):
    config = load_config(file)
    shapes = parameters.split(parameters.abstract(lambda rngs: LanguageModel(config, rngs=rngs)))[1]
    assert sum(shape.size for shape in shapes.values()) == PUBLISHED[file.stem]


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_options_in_the_form_of_transformers_4_and_5_read_alike(file, tmp_path):
    """Presets have the older form, which is also the one we write; transformers 5 writes its own."""
    transformers = pytest.importorskip("transformers", reason="needs the [test] extra's transformers")
    config = load_config(file)
    transformers.AutoConfig.from_pretrained(file).save_pretrained(tmp_path)
    assert load_config(tmp_path) == config
    _, ours = write_config(config)
    (tmp_path / "config.json").write_text(json.dumps(ours))
    transformers.AutoConfig.from_pretrained(tmp_path / "config.json").save_pretrained(tmp_path / "again")
    assert load_config(tmp_path / "again") == config


# Of a class of transformers: what changes no logits of a model that is not trained.
NO_EFFECT = {
    *("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "initializer_range", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "pretraining_tp", "reorder_and_upcast_attn"),
    *("summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"),
    *("sliding_window", "max_window_layers"),  # of Qwen, whose windows are refused
}


@pytest.mark.parametrize("name", MODELS)
def test_every_option_of_transformers_is_read_or_of_no_effect(name):
    """What neither reads is ignored there, too."""
    transformers = pytest.importorskip("transformers", reason="needs the [test] extra's transformers")
    family, options = MODELS[name]
    values = getattr(transformers, f"{family}Config")(**options).to_dict()
    read = set()

    class Recorded(dict):
        def get(self, key, default=None):
            read.add(key)
            return super().get(key, default)

    read_config(Recorded(values), name)
    assert not values.keys() - read - NO_EFFECT - transformers.PretrainedConfig().to_dict().keys()


REFUSED = [
    ("llama", dict(model_type="mamba"), "model_type is 'mamba'; supported: llama, qwen2, qwen3, gemma, gemma2, gemma3"),
    ("llama", dict(model_type=None), "model_type is None"),
    ("llama", dict(hidden_size=None), "hidden_size is None; expected a whole number from 1"),
    ("llama", dict(model_type="gpt2"), "key 'n_layer' is missing"),
    ("llama", dict(hidden_size="32"), "hidden_size is '32'; expected a whole number from 1"),
    ("llama", dict(num_hidden_layers=0), "num_hidden_layers is 0"),
    ("llama", dict(num_attention_heads=5), "a width of 32 does not divide among 5 heads"),
    ("llama", dict(rms_norm_eps="small"), "rms_norm_eps is 'small'; expected a number above 0"),
    ("llama", dict(tie_word_embeddings=1), "tie_word_embeddings is 1; expected true or false"),
    ("llama", dict(rms_norm_eps=None), "rms_norm_eps is None; expected a number above 0"),
    ("llama", dict(rope_theta="base"), "rope_theta is 'base'; expected a number"),
    ("llama", dict(hidden_act="mish"), "hidden_act is 'mish'; supported: 'silu'"),
    ("llama", dict(quantization_config={"bits": 4}), "quantization_config is .*; only None is supported"),
    ("llama", dict(rope_parameters={"rope_type": "yarn", "factor": 4.0}), "rope_parameters is .*yarn.* only the types"),
    ("llama", dict(rope_scaling={"type": "dynamic", "factor": 2}), "rope_scaling is .*dynamic"),
    ("llama", dict(rope_scaling={"type": "linear"}), "rope_scaling.factor is None; expected a number"),
    ("llama", dict(rope_scaling={"rope_type": "llama3", "factor": 8}), "rope_scaling.low_freq_factor is None"),
    ("llama", dict(rope_parameters={"partial_rotary_factor": 0.5}), "only whole heads"),
    ("qwen2", dict(use_sliding_window=True), "use_sliding_window is True; only False"),
    ("qwen3", dict(use_sliding_window=True), "use_sliding_window is True; only False"),
    ("gemma", dict(use_bidirectional_attention=True), "use_bidirectional_attention is True"),
    ("gemma2", dict(layer_types=["full_attention"]), "layer_types is .* for each of the 2 layers"),
    ("gemma2", dict(layer_types=["chunked_attention"] * 2), "layer_types is .*chunked_attention"),
    ("gemma2", dict(sliding_window=None), "sliding_window is None"),
    ("gemma3_text", dict(rope_parameters={"sliding_attention": {"type": "linear", "factor": 2}}), "sliding_attention"),
    ("gpt2", dict(scale_attn_weights=False), "scale_attn_weights is False; only True"),
    ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True"),
    ("gpt2", dict(add_cross_attention=True), "add_cross_attention is True"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED, ids=lambda value: "" if type(value) is str else None)
def test_an_option_we_do_not_compute_is_refused_by_name(name, changes, message, tmp_path):
    options = MODELS["gpt2"][1] if name == "gpt2" else DIMS | HEADS
    values = {"model_type": name, **options, **changes}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message) as error:
        load_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


def test_a_config_of_no_family_is_not_written():
    config = LanguageModelConfig(
        vocab_size=8, num_layers=2, width=8, num_heads=2, num_kv_heads=1, head_dim=4, hidden=8, qk_norm=True
    )
    assert write_config(config)[1]["model_type"] == "qwen3"
    with pytest.raises(CheckpointError, match=r"The nearest, qwen3, has .*post_norms = False instead of True"):
        write_config(dataclasses.replace(config, post_norms=True))

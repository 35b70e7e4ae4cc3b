"""Adapters in PEFT's layout, judged by PEFT itself: what we save it loads, what it saves we load."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from user_llm.checkpoints import adapters
from user_llm.checkpoints.adapters import content, load_adapters, save_adapters
from user_llm.checkpoints.huggingface import CheckpointError, load_config, load_language_model
from user_llm.files import read_json
from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel, causal_mask
from user_llm.models.lora import LoraConfig

LLAMA = dict(vocab_size=48, hidden_size=24, intermediate_size=20, num_hidden_layers=2)
LLAMA |= dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
GPT2 = dict(vocab_size=48, n_embd=24, n_layer=2, n_head=4, n_positions=32)
LORA = {
    "llama": LoraConfig(rank=3, alpha=12.0, targets=("q", "v", "o", "down")),
    "gpt2": LoraConfig(rank=2, alpha=5.0, targets=("v", "q", "o", "up")),
}
TOKENS = np.random.default_rng(0).integers(0, 48, (2, 9))
ROUNDING = 5e-4  # of logits up to 8, by two libraries' kernels; a wrong adapter is off by more than 0.05


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request, tmp_path_factory):
    """(name, folder of a base model of transformers)"""
    torch = pytest.importorskip("torch", reason="needs the [test] extra's torch")
    transformers = pytest.importorskip("transformers", reason="needs the [test] extra's transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA) if request.param == "llama" else transformers.GPT2Config(**GPT2)
    folder = tmp_path_factory.mktemp(request.param)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data *= 5  # so that an adapter is felt in the logits
    model.save_pretrained(folder)
    return request.param, folder


def adapted(folder, lora: LoraConfig, scan_layers: bool = False) -> tuple[LanguageModel, dict[str, jax.Array]]:
    """The base model with random adapters, and these alone."""
    config = dataclasses.replace(load_config(folder), lora=lora, scan_layers=scan_layers)
    graphdef, shapes, buffers = parameters.split(parameters.abstract(lambda rngs: LanguageModel(config, rngs=rngs)))
    random = np.random.default_rng(1)
    ours = {
        path: jnp.asarray(0.3 * random.normal(size=value.shape), jnp.float32)
        for path, value in shapes.items()
        if "/lora/" in path
    }
    plain = parameters.split(load_language_model(folder, scan_layers=scan_layers))[1]
    return parameters.merge(graphdef, plain | ours, buffers), ours


@jax.jit
def logits(model):
    tokens = jnp.asarray(TOKENS)
    hidden, _ = model(tokens, jnp.arange(9)[None].repeat(2, 0), causal_mask(jnp.ones(tokens.shape, bool)))
    return model.logits(hidden)


def their_logits(model):
    import torch

    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS)).logits.numpy()


def their_base(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_peft_loads_what_we_save(base, tmp_path):
    peft = pytest.importorskip("peft", reason="needs the [test] extra's peft")
    name, folder = base
    model, ours = adapted(folder, LORA[name])
    save_adapters(ours, model.config, tmp_path)
    expected = their_logits(peft.PeftModel.from_pretrained(their_base(folder), tmp_path))
    np.testing.assert_allclose(logits(model), expected, atol=ROUNDING)
    assert np.abs(expected - their_logits(their_base(folder))).max() > 0.05


def test_what_peft_saves_we_load(base, tmp_path):
    peft = pytest.importorskip("peft", reason="needs the [test] extra's peft")
    name, folder = base
    modules = {"llama": ["q_proj", "down_proj"], "gpt2": ["attn.c_proj", "c_fc"]}[name]
    lora = LoraConfig(rank=3, alpha=6.0, targets={"llama": ("q", "down"), "gpt2": ("o", "up")}[name])
    settings = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=modules, init_lora_weights=False, fan_in_fan_out=name == "gpt2"
    )
    theirs = peft.get_peft_model(their_base(folder), settings)
    theirs.save_pretrained(tmp_path)
    model, _ = adapted(folder, lora)
    graphdef, values, buffers = parameters.split(model)
    loaded = parameters.merge(graphdef, values | load_adapters(tmp_path, model.config), buffers)
    np.testing.assert_allclose(logits(loaded), their_logits(theirs), atol=ROUNDING)


# Of PEFT's settings: what changes no answer of plain adapters, or shows in the names of their tensors.
NO_EFFECT = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("target_modules", "exclude_modules", "layers_pattern", "trainable_token_indices", "target_parameters"),
    *("lora_dropout", "megatron_config", "megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config"),
}


def test_every_setting_of_peft_is_read_or_of_no_effect(base, tmp_path, monkeypatch):
    peft = pytest.importorskip("peft", reason="needs the [test] extra's peft")
    name, folder = base
    model, ours = adapted(folder, LORA[name])
    save_adapters(ours, model.config, tmp_path)
    read = set()

    class Recorded(dict):
        def get(self, key, default=None):
            read.add(key)
            return super().get(key, default)

    monkeypatch.setattr(adapters, "read_json", lambda *arguments: Recorded(read_json(*arguments)))
    load_adapters(tmp_path, model.config)
    assert not {field.name for field in dataclasses.fields(peft.LoraConfig)} - read - NO_EFFECT


def test_adapters_of_the_upper_layers_alone_are_peft_s_layers_to_transform(base, tmp_path):
    peft = pytest.importorskip("peft", reason="needs the [test] extra's peft")
    name, folder = base
    model, ours = adapted(folder, dataclasses.replace(LORA[name], first_layer=1))
    assert all(path.startswith("layers/1/") for path in ours)
    save_adapters(ours, model.config, tmp_path)
    theirs = peft.PeftModel.from_pretrained(their_base(folder), tmp_path)
    np.testing.assert_allclose(logits(model), their_logits(theirs), atol=ROUNDING)
    assert theirs.peft_config["default"].layers_to_transform == [1]
    found = load_adapters(tmp_path, model.config)
    assert found.keys() == ours.keys()
    with pytest.raises(CheckpointError, match=r"layers_to_transform is \[1\]; this model needs None"):
        load_adapters(tmp_path, dataclasses.replace(model.config, lora=LORA[name]))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_saved_adapters_load_back_exactly_in_any_layout(base, tmp_path, scan_layers):
    name, folder = base
    model, ours = adapted(folder, LORA[name], scan_layers)
    save_adapters(ours, model.config, tmp_path / "one")
    assert content(tmp_path / "one").keys() == {file.name for file in (tmp_path / "one").iterdir()}
    assert content(tmp_path / "one").keys() == {"adapter_config.json", "adapter_model.safetensors"}
    reordered = dataclasses.replace(LORA[name], targets=LORA[name].targets[::-1])
    found = load_adapters(tmp_path / "one", dataclasses.replace(model.config, lora=reordered))
    assert found.keys() == ours.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    other = dataclasses.replace(model.config, scan_layers=not scan_layers)
    save_adapters(load_adapters(tmp_path / "one", other), other, tmp_path / "two")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[key], two[key]) for key in one)


def test_adapters_of_another_model_are_refused_by_name(base, tmp_path):
    name, folder = base
    model, ours = adapted(folder, LORA[name])
    save_adapters(ours, model.config, tmp_path)
    config, lora = model.config, LORA[name]

    def expect(message: str, **changes) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_adapters(tmp_path, dataclasses.replace(config, **changes))

    expect("lora is None", lora=None)
    expect(f"r is {lora.rank}; this model needs 7", lora=dataclasses.replace(lora, rank=7))
    expect(f"lora_alpha is {lora.alpha}; this model needs 1.0", lora=dataclasses.replace(lora, alpha=1.0))
    expect(r"is left over \(.* in all\)", lora=dataclasses.replace(lora, targets=lora.targets[:3]))
    expect(r"layers\.2.* is missing" if name == "llama" else r"h\.2.* is missing", num_layers=3)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    expect("use_dora is True; this model needs False")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is missing"):
        load_adapters(tmp_path / "nowhere", config)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    weights = load_file(tmp_path / "adapter_model.safetensors")
    key = next(key for key in weights if "attn.c_attn.lora_B" in key or "q_proj.lora_B" in key)
    if name == "gpt2":  # a dense B, as PEFT trains it, is no q, k and v apart
        save_file(weights | {key: np.ones_like(weights[key])}, tmp_path / "adapter_model.safetensors")
        expect(f"{key} joins query, key and value")
    save_file(weights | {key: weights[key][1:].copy()}, tmp_path / "adapter_model.safetensors")
    expect(r"has shape \[.*\]; expected \[")
    if name == "gpt2":
        expect("lora.targets names 'gate'; this model has q, k, v, o, up, down", lora=LoraConfig(targets=("gate",)))

"""Validation of an experiment's config: a wrong value is answered with its key and the way to put it right.

The keys, their defaults and their meaning are in `configs/base.py`; `command_line.py` answers for a key that
is not there and for a value of the wrong type.
"""

import difflib
import math
import re
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

STAGES = ("llm", "encoder", "user_llm")
FEATURES = ("item", "category", "rating")
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")  # of an LLM's layer, that LoRA may adapt
BYTE_PIECES = 256 + 4  # of a SentencePiece model with byte fallback: every byte, and pad, bos, eos, unk
RECALL_DEPTH = 10  # the deepest cut of the reported metrics

FAMILIES = ("movielens", "amazon_reviews", "google_local", "custom")  # of datasets
TASKS = ("next_item", "favorite_category", "review_generation")
_DTYPES = ("float32", "bfloat16")

# Key → the values it may have.
CHOICES = {
    "task": TASKS,
    "encoder.kind": ("autoregressive", "dual_encoder", "bert4rec"),
    "encoder.init": ("pretrained", "random"),
    "encoder.dual_encoder.label": ("item", "category", "favorite_category"),
    "integration.kind": ("cross_attention", "soft_prompt", "none"),
    "strategy": ("full", "lora", "enc", "proj"),
    "evaluation.answers": ("beams", "exact"),
    "compute.dtype": _DTYPES,
    "compute.param_dtype": _DTYPES,
    "compute.frozen_dtype": _DTYPES,
    "training.llm.keep_best": ("", "loss"),
    "training.encoder.keep_best": ("", "loss", "recall@10", "ndcg@10"),
    "training.user_llm.keep_best": ("", "loss"),
}

# Key → the smallest and the largest value it may have. `*` stands for every stage.
_COUNT = (1, math.inf)
_COUNT_OR_OFF = (0, math.inf)
_SHARE = (0.0, 1.0)
_SEED = (0, 2**32 - 1)
RANGES = {
    "seed": _SEED,
    "data.max_malformed": _SHARE,
    "data.history_length": _COUNT,
    "data.min_history": _COUNT_OR_OFF,
    "data.text_history": _COUNT_OR_OFF,
    "data.simulated.num_users": _COUNT,
    "data.simulated.num_items": _COUNT,
    "data.simulated.mean_events": _COUNT,
    "data.simulated.seed": _SEED,
    "data.amazon_reviews.category_level": _COUNT_OR_OFF,
    "prompt.max_inputs": _COUNT,
    "prompt.max_targets": (2, math.inf),
    "encoder.num_layers": _COUNT,
    "encoder.width": _COUNT,
    "encoder.num_heads": _COUNT,
    "encoder.hidden": _COUNT,
    "encoder.dropout": (0.0, 0.99),
    "encoder.chunk_rows": _COUNT,
    "encoder.bert4rec.mask_rate": (0.01, 1.0),
    "encoder.dual_encoder.num_outputs": _COUNT,
    "encoder.dual_encoder.fusion_layers": _COUNT,
    "llm.vocabulary_size": (BYTE_PIECES, math.inf),
    "llm.num_layers": _COUNT,
    "llm.width": _COUNT,
    "llm.num_heads": _COUNT,
    "llm.num_kv_heads": _COUNT,
    "llm.head_dim": (2, math.inf),
    "llm.hidden": _COUNT,
    "llm.max_length": _COUNT,
    "llm.rope_theta": (1.0, math.inf),
    "integration.every": _COUNT,
    "integration.num_heads": _COUNT,
    "integration.head_dim": _COUNT,
    "integration.hidden": _COUNT,
    "integration.task_prompt": _COUNT_OR_OFF,
    "integration.perceiver.num_layers": _COUNT,
    "integration.perceiver.num_latents": _COUNT,
    "integration.perceiver.num_heads": _COUNT,
    "integration.perceiver.hidden": _COUNT,
    "lora.rank": _COUNT,
    "lora.alpha": (0.0, math.inf),
    "training.*.steps": _COUNT,
    "training.*.batch_size": _COUNT,
    "training.*.accumulate": _COUNT,
    "training.*.learning_rate": (0.0, math.inf),
    "training.*.warmup_fraction": _SHARE,
    "training.*.weight_decay": (0.0, math.inf),
    "training.*.clip_norm": (0.0, math.inf),
    "training.*.log_every": _COUNT,
    "training.*.eval_every": _COUNT_OR_OFF,
    "training.*.checkpoint_every": _COUNT,
    "training.*.keep_last": _COUNT,
    "evaluation.batch_size": _COUNT,
    "evaluation.num_beams": (RECALL_DEPTH, math.inf),
    "evaluation.max_users": _COUNT_OR_OFF,
    "evaluation.max_validation": _COUNT_OR_OFF,
    "evaluation.bootstrap_samples": _COUNT,
}


class ConfigError(ValueError):
    """A wrong flag, key or value; the message says which, what was expected and what to write instead."""


def validate(config: ConfigDict) -> None:
    """Raises `ConfigError`, with a line for each value that cannot be, or does not go with another."""
    problems = [*_choices(config), *_ranges(config), *_stages(config)]
    if not problems:  # the rest divides by these numbers
        rules = (_data, _task, _encoder, _integration, _language_model, _compute, _training)
        problems = [problem for rule in rules for problem in rule(config)]
    if problems:
        heading = [f"{len(problems)} values cannot be used:"] if len(problems) > 1 else []
        raise ConfigError("\n  ".join([*heading, *problems]))


def as_flag(key: str, value: object) -> str:
    """How `key` is given `value` on the command line."""
    return f"--config.{key}={str(value).lower() if isinstance(value, bool) else value}"


def _says(config: ConfigDict, key: str) -> str:
    return f"config.{key}={config_path.get_value(key, config)!r}"


def _choices(config: ConfigDict) -> Iterator[str]:
    for key, choices in CHOICES.items():
        value = config_path.get_value(key, config)
        if value not in choices:
            near = difflib.get_close_matches(value, choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            yield f"{_says(config, key)}: expected {' or '.join(map(repr, choices))}{hint}"


def _ranges(config: ConfigDict) -> Iterator[str]:
    for pattern, (low, high) in RANGES.items():
        for key in [pattern.replace("*", stage) for stage in STAGES] if "*" in pattern else [pattern]:
            if not low <= config_path.get_value(key, config) <= high:  # also what is no number (nan)
                bounds = f"at least {low}" if high == math.inf else f"between {low} and {high}"
                yield f"{_says(config, key)}: expected {bounds}"


def _stages(config: ConfigDict) -> Iterator[str]:
    stages, says = tuple(config.stages), _says(config, "stages")
    if not stages or stages != tuple(stage for stage in STAGES if stage in stages):
        yield f"{says}: expected some of {STAGES}, each once and in this order"
    if "user_llm" not in stages:
        return
    if reads_pretrained_encoder(config) and "encoder" not in stages and not config.encoder.checkpoint:
        yield (
            f"{says} pretrains no encoder: add 'encoder', name a finished run that has one with "
            "--config.encoder.checkpoint=WORKDIR, or set --config.encoder.init=random"
        )
    if config.strategy != "full" and not config.llm.checkpoint and "llm" not in stages:
        yield (
            f"{_says(config, 'strategy')} freezes a language model that nothing has trained: add 'llm' to "
            "config.stages, or name a pretrained one with --config.llm.checkpoint=FOLDER"
        )


def _data(config: ConfigDict) -> Iterator[str]:
    data, raw_path = config.data, _says(config, "data.raw_path")
    family, _, name = data.dataset.partition("/")
    if family not in FAMILIES or not name:
        near = difflib.get_close_matches(family, FAMILIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        yield f"{_says(config, 'data.dataset')}: expected family/config with a family of {FAMILIES}{hint}"
    if data.min_history > data.history_length:
        yield (
            f"{_says(config, 'data.min_history')} is more than {_says(config, 'data.history_length')}: "
            "lower it, or set 0 for full histories only"
        )
    if data.text_history > data.history_length:
        yield (
            f"{_says(config, 'data.text_history')} is more than {_says(config, 'data.history_length')}; "
            "lower it, or raise the other"
        )
    if data.raw_path and name == "simulated":
        yield f"{raw_path}: {data.dataset} writes its own files; leave this empty, or change data.dataset"
    elif data.raw_path and not Path(data.raw_path).exists():
        yield f"{raw_path}: no such file or folder; expected the dataset's zip, or its folder"


def _encoder(config: ConfigDict) -> Iterator[str]:
    width, num_heads = config.encoder.width, config.encoder.num_heads
    features = tuple(config.encoder.features)
    if width % num_heads:
        example = as_flag("encoder.width", math.ceil(width / num_heads) * num_heads)
        heads = _says(config, "encoder.num_heads")
        yield f"{_says(config, 'encoder.width')}: expected a multiple of {heads}, as in {example}"
    if features != tuple(feature for feature in FEATURES if feature in features) or "item" not in features:
        yield f"{_says(config, 'encoder.features')}: expected 'item' and others of {FEATURES}, in this order"
    if config.encoder.checkpoint and not (Path(config.encoder.checkpoint) / "config.json").is_file():
        yield f"{_says(config, 'encoder.checkpoint')}: no config.json there; expected the workdir of a finished run"
    keep_best = config.training.encoder.keep_best
    if trains_categories(config) and "encoder" in config.stages and keep_best not in ("", "loss"):
        yield (
            f"{_says(config, 'encoder.dual_encoder.label')} ranks no items, so that "
            f"{_says(config, 'training.encoder.keep_best')} cannot be had: set --config.training.encoder.keep_best=loss"
        )


def _task(config: ConfigDict) -> Iterator[str]:
    if config.task == "review_generation" and config.data.dataset.startswith("movielens/"):
        yield f"{_says(config, 'task')}: MovieLens has no reviews; take a dataset of amazon_reviews or google_local"
    if config.encoder.dual_encoder.label == "favorite_category" and config.task != "favorite_category":
        label = _says(config, "encoder.dual_encoder.label")
        yield f"{label} is the baseline of --config.task=favorite_category; this run has {_says(config, 'task')}"


def reads_pretrained_encoder(config: ConfigDict) -> bool:
    """Whether the contextualised LLM starts with an encoder that an earlier stage, or another run, has trained."""
    return config.integration.kind != "none" and config.encoder.init == "pretrained"


def trains_categories(config: ConfigDict) -> bool:
    """Whether the encoder learns a category instead of the next item."""
    return config.encoder.kind == "dual_encoder" and config.encoder.dual_encoder.label != "item"


def _integration(config: ConfigDict) -> Iterator[str]:
    kind, strategy, perceiver = config.integration.kind, config.strategy, config.integration.perceiver
    targets = tuple(config.lora.targets)
    if not targets or targets != tuple(name for name in PROJECTIONS if name in targets):
        yield f"{_says(config, 'lora.targets')}: expected some of {PROJECTIONS}, each once and in this order"
    if config.lora.checkpoint and not (Path(config.lora.checkpoint) / "adapter_config.json").is_file():
        yield f"{_says(config, 'lora.checkpoint')}: no adapter_config.json there; expected a folder of PEFT adapters"
    if config.lora.checkpoint and strategy != "lora":
        yield f"{_says(config, 'lora.checkpoint')} is for strategy lora; this one is {strategy!r}"
    if config.encoder.width % perceiver.num_heads:
        heads = _says(config, "integration.perceiver.num_heads")
        yield f"{_says(config, 'encoder.width')}: expected a multiple of {heads}"
    if kind != "none":
        return
    says = _says(config, "integration.kind")
    if strategy in ("enc", "proj"):
        yield f"{says} has no encoder, of which strategy={strategy!r} would train something: take full or lora"
    if perceiver.enabled:
        yield f"{says} has no user embeddings for config.integration.perceiver.enabled=True: leave it out"


def _language_model(config: ConfigDict) -> Iterator[str]:
    llm, prompt = config.llm, config.prompt
    if llm.vocabulary and not Path(llm.vocabulary).exists():
        says = _says(config, "llm.vocabulary")
        yield f"{says}: no such file; expected tokenizer.model, tokenizer.json or their folder"
    if llm.architecture and not Path(llm.architecture).is_file():
        presets = ", ".join(sorted(str(file) for file in Path("configs/llm").glob("*.json")))
        yield f"{_says(config, 'llm.architecture')}: no such file; expected a Hugging Face config.json, as {presets}"
    if llm.architecture and llm.checkpoint:
        yield f"{_says(config, 'llm.architecture')}: the checkpoint says its own; leave one of the two out"
    if llm.checkpoint or llm.architecture:  # whose dimensions replace those of the config
        is_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", llm.checkpoint) and not Path(llm.checkpoint).parent.is_dir()
        if llm.checkpoint and not is_hub_name and not (Path(llm.checkpoint) / "config.json").is_file():
            yield (
                f"{_says(config, 'llm.checkpoint')}: no config.json there; expected a hub name (organisation/model) or "
                "a Hugging Face folder, with config.json, model.safetensors and tokenizer.model or tokenizer.json"
            )
        return
    if llm.num_heads % llm.num_kv_heads:
        yield f"{_says(config, 'llm.num_heads')}: expected a multiple of {_says(config, 'llm.num_kv_heads')}"
    if llm.head_dim % 2:
        yield f"{_says(config, 'llm.head_dim')}: expected an even number, as rotary positions turn pairs"
    if prompt.max_inputs + prompt.max_targets > llm.max_length:
        inputs, targets = _says(config, "prompt.max_inputs"), _says(config, "prompt.max_targets")
        yield f"{_says(config, 'llm.max_length')}: expected at least {inputs} and {targets} together"


def _compute(config: ConfigDict) -> Iterator[str]:
    if config.compute.remat and not config.compute.scan_layers:
        yield "config.compute.remat=True needs scanned layers: add --config.compute.scan_layers=true"
    sizes = config.compute.mesh.to_dict()
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            yield f"{_says(config, f'compute.mesh.{axis}')}: expected a number of devices, or -1 for the rest"
    if list(sizes.values()).count(-1) > 1:
        yield f"config.compute.mesh={sizes}: one axis at most can be -1 (the rest); give the others a number"


def _training(config: ConfigDict) -> Iterator[str]:
    for stage in config.stages:
        training, key = config.training[stage], f"training.{stage}"
        if training.batch_size % training.accumulate:
            parts = _says(config, f"{key}.accumulate")
            yield f"{_says(config, f'{key}.batch_size')}: expected a multiple of {parts}, its number of parts"
        if not training.keep_best:
            continue
        wish = _says(config, f"{key}.keep_best")
        otherwise = f"or keep the last checkpoint, with --config.{key}.keep_best="
        if not training.eval_every or training.checkpoint_every % training.eval_every:
            yield (
                f"{wish} needs an evaluation at every checkpoint: let --config.{key}.eval_every divide "
                f"{_says(config, f'{key}.checkpoint_every')}, {otherwise}"
            )
        if not config.data.validation:
            yield f"{wish} needs validation windows: set --config.data.validation=true, {otherwise}"

"""What the contenders of part llm train on and with: a config, MovieLens-1M or titles like its, a language model."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from benchmarks.beam_workload import BeamWorkload
from benchmarks.flops import Layers, UserLLMStep, layers_of
from benchmarks.protocol import REPOSITORY
from benchmarks.workload import Workload
from user_llm import schema
from user_llm.experiment.validation import validate

TASK = "next_item"
LLAMA = BeamWorkload(vocabulary=32_768, num_layers=18, width=128, num_heads=4, hidden=512)
"""Of the random language model: as deep as Gemma 3 270M, with a vocabulary of which titles need little, and small."""


def config_of(overrides: Mapping[str, Any]) -> ConfigDict:
    """The experiment that is measured: a small encoder of items; histories of 50 events, answers of 20 tokens."""
    config = schema.get_config()
    config.name = "benchmark"
    config.stages = ("llm", "user_llm")
    config.data.validation = False
    config.prompt.max_targets = 20
    config.encoder.init = "random"
    config.encoder.features = ("item",)
    config.encoder.num_layers = 2
    config.encoder.num_heads = 4
    config.llm.vocabulary_size = 4096
    config.llm.num_layers = 3
    config.llm.max_length = 64
    config.training.user_llm.keep_best = ""
    for key, value in overrides.items():
        config_path.set_value(key, config, value)
    validate(config)
    return config


def frozen(data: Mapping[str, Any], llm: str) -> dict[str, Any]:
    """Keys of a frozen language model that reads users before every third layer; `data` are `dataset`'s."""
    return {
        **data,
        "llm.checkpoint": llm,
        "strategy": "enc",
        "integration.every": 3,
        "training.user_llm.batch_size": 32,
    }


def dataset() -> dict[str, Any]:
    """Keys that name MovieLens-1M where it is at hand, or a simulated catalogue of its size."""
    shared = Path(os.environ.get("USER_LLM_SHARED", REPOSITORY.parent / "shared"))
    archive = shared / "data" / "ml-1m.zip"
    if archive.is_file():
        return {"data.dataset": "movielens/1m", "data.raw_path": str(archive.resolve())}
    sizes = {"num_users": 2000, "num_items": 3883, "mean_events": 100}
    return {
        "data.dataset": "movielens/simulated",
        **{f"data.simulated.{name}": value for name, value in sizes.items()},
    }


def encoder_of(config: ConfigDict, batch_size: int, num_items: int) -> Workload:
    """The sizes of a config's encoder."""
    dims = {name: config.encoder[name] for name in ("num_layers", "width", "num_heads", "hidden")}
    return Workload(batch_size, config.data.history_length, num_items, **dims)


def blocks_of(config: ConfigDict, language_model: Mapping[str, Any], first_layer: int) -> Layers:
    """The sizes of a config's cross-attention blocks from `first_layer` on, in a `LanguageModelConfig`."""
    dims = config.integration
    return dataclasses.replace(
        layers_of(language_model),
        num_layers=(language_model["num_layers"] - first_layer) // dims.every,
        num_heads=dims.num_heads,
        num_kv_heads=dims.num_heads,
        head_dim=dims.head_dim,
        hidden=dims.hidden,
    )


def step_of(
    config: ConfigDict,
    language_model: Mapping[str, Any],
    batch: Mapping[str, Any],
    *,
    vocabulary: int,
    first_layer: int = 0,
    stored: bool = False,
) -> UserLLMStep:
    """What a training step of a config has to compute; a batch without histories is the language model's alone."""
    size, tokens = batch["decoder_input_tokens"].shape
    text = UserLLMStep(layers_of(language_model), vocabulary, size, tokens, tokens)
    if "history/item" not in batch:
        return text
    return dataclasses.replace(
        text,
        answer_slots=tokens + 1 - batch["prompt_tokens"].shape[1],
        blocks=blocks_of(config, language_model, first_layer),
        encoder=encoder_of(config, size, 0),
        frozen=config.strategy == "enc",
        first_layer=first_layer,
        stored=stored,
    )

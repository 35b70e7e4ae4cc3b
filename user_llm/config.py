"""Validation of an experiment's config: a wrong value is answered with its key and the way to put it right.

The keys, their defaults and their meaning are in `schema.py`; `keys.py` answers for a key that is not there and for a
value of the wrong type. Here is what holds whatever tasks, encoders and stages there are; `experiment/validation.py`
puts it together with what each of them says.
"""

import difflib
import math
import re
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from user_llm.errors import UserError
from user_llm.gguf_header import is_gguf
from user_llm.keys import DEFAULTS, as_flag
from user_llm.paths import local_path

FEATURES = ("item", "category", "rating")
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")  # of an LLM's layer, that LoRA may adapt
BYTE_PIECES = 256 + 4  # of a SentencePiece model with byte fallback: every byte, and pad, bos, eos, unk
LEAST_RATE = 0.005  # of a task in a mixture, which is mixed by the thousand
RECALL_DEPTH = 10  # the deepest cut of the reported metrics

FAMILIES = ("movielens", "amazon_reviews", "google_local", "custom")  # of datasets
_DTYPES = ("float32", "bfloat16")

# Key → the values it may have.
CHOICES = {
    "data.reader": ("windows", "seqio"),
    "encoder.time": ("", "past", "asked"),
    "encoder.init": ("pretrained", "random"),
    "encoder.softmax": ("full", "sampled"),
    "encoder.dual_encoder.label": ("item", "category", "favorite_category"),
    "integration.kind": ("cross_attention", "soft_prompt", "none"),
    **{key: ("adam", "rowwise") for key in DEFAULTS if key.endswith(".tables")},
    "strategy": ("full", "lora", "enc", "proj"),
    "evaluation.answers": ("beams", "exact", "fused"),
    "evaluation.exclude": ("history", "timeline", "nothing"),
    "compute.dtype": _DTYPES,
    "compute.param_dtype": _DTYPES,
    "compute.frozen_dtype": _DTYPES,
}

# Key → the smallest and the largest value it may have. `*` stands for every stage.
_WHOLE, _NUMBER = 2**31 - 1, (2 - 2**-23) * 2.0**127  # the largest that the 32 bits of a device hold
_COUNT = (1, _WHOLE)
_COUNT_OR_OFF = (0, _WHOLE)
_SIZE = (0.0, _NUMBER)
_SHARE = (0.0, 1.0)
_SHARE_BUT_NOT_ALL = (0.0, 0.99)
_SEED = (0, 2**32 - 1)
RANGES = {
    "seed": _SEED,
    "data.max_malformed": _SHARE_BUT_NOT_ALL,
    "data.history_length": _COUNT,
    "data.min_history": _COUNT_OR_OFF,
    "data.text_history": _COUNT_OR_OFF,
    "data.shards": _COUNT,
    "data.simulated.num_users": _COUNT,
    "data.simulated.num_items": _COUNT,
    "data.simulated.mean_events": _COUNT,
    "data.simulated.seed": _SEED,
    "data.amazon_reviews.category_level": _COUNT_OR_OFF,
    "prompt.max_inputs": _COUNT,
    "prompt.max_targets": (2, _WHOLE),
    "encoder.num_layers": _COUNT,
    "encoder.width": _COUNT,
    "encoder.num_heads": _COUNT,
    "encoder.hidden": _COUNT,
    "encoder.dropout": _SHARE_BUT_NOT_ALL,
    "encoder.stride": _COUNT,
    "encoder.chunk_rows": _COUNT,
    "encoder.negatives": _COUNT,
    "encoder.bert4rec.mask_rate": (0.01, 1.0),
    "encoder.dual_encoder.num_outputs": _COUNT,
    "encoder.dual_encoder.fusion_layers": _COUNT,
    "llm.vocabulary_size": (BYTE_PIECES, _WHOLE),
    "llm.num_layers": _COUNT,
    "llm.width": _COUNT,
    "llm.num_heads": _COUNT,
    "llm.num_kv_heads": _COUNT,
    "llm.head_dim": (2, _WHOLE),
    "llm.hidden": _COUNT,
    "llm.max_length": _COUNT,
    "llm.rope_theta": (1.0, _NUMBER),
    "integration.every": _COUNT,
    "integration.first_layer": _COUNT_OR_OFF,
    "integration.newest": _COUNT_OR_OFF,
    "integration.spelling_steps": _COUNT_OR_OFF,
    "integration.rates.encoder": _SHARE,
    "integration.rates.llm": _SHARE,
    "integration.connector_first": _SHARE_BUT_NOT_ALL,
    "integration.targets": _COUNT,
    "integration.whole_every": _COUNT,
    "integration.distillation": _SHARE,
    "integration.label_contexts": _SHARE_BUT_NOT_ALL,
    "integration.stored_gib": (0.0, _NUMBER),
    "integration.num_heads": _COUNT,
    "integration.head_dim": _COUNT,
    "integration.hidden": _COUNT,
    "integration.task_prompt": _COUNT_OR_OFF,
    "integration.perceiver.num_layers": _COUNT,
    "integration.perceiver.num_latents": _COUNT,
    "integration.perceiver.num_heads": _COUNT,
    "integration.perceiver.hidden": _COUNT,
    "lora.rank": _COUNT,
    "lora.alpha": _SIZE,
    "lora.first_layer": _COUNT_OR_OFF,
    "training.*.steps": _COUNT,
    "training.*.batch_size": _COUNT,
    "training.*.accumulate": _COUNT,
    "training.*.learning_rate": _SIZE,
    "training.*.warmup_fraction": _SHARE,
    "training.*.weight_decay": _SIZE,
    "training.*.clip_norm": _SIZE,
    "training.*.log_every": _COUNT,
    "training.*.eval_every": _COUNT_OR_OFF,
    "training.*.checkpoint_every": _COUNT,
    "training.*.keep_last": _COUNT,
    "evaluation.batch_size": _COUNT,
    "evaluation.num_beams": (RECALL_DEPTH, _WHOLE),
    "evaluation.max_users": _COUNT_OR_OFF,
    "evaluation.max_validation": _COUNT_OR_OFF,
    "evaluation.cold_share": _SHARE_BUT_NOT_ALL,
    "evaluation.max_fit": _COUNT_OR_OFF,
    "evaluation.bootstrap_samples": _COUNT,
}

# Key → the file that must be there, or in that folder ("": none in particular), and what was expected.
_FILES = {
    "data.raw_path": ("", "the dataset's zip, or its folder"),
    "encoder.checkpoint": ("config.json", "the workdir of a finished run"),
    "evaluation.second_encoder": ("config.json", "the workdir of a finished run"),
    "lora.checkpoint": ("adapter_config.json", "a folder of PEFT adapters"),
    "llm.vocabulary": ("", "tokenizer.model, tokenizer.json or their folder"),
    "llm.architecture": ("", "a Hugging Face config.json, as those of configs/llm/"),
    "llm.checkpoint": (
        "config.json",
        "organisation/model of the hub, or a folder with config.json, weights and tokenizer, or a GGUF file",
    ),
}
_PLACES = ("data.data_dir", *_FILES)


class ConfigError(UserError):
    """A wrong flag, key or value; the message says which, what was expected and what to write instead."""


def refuse(problems: Iterable[str], where: str = "") -> None:
    """Raises `ConfigError` with all of `problems`, a line each, where there are any."""
    problems = list(problems)
    if problems:
        heading = [f"{len(problems)} values cannot be used:"] if len(problems) > 1 else []
        raise ConfigError(where + "\n  ".join([*heading, *problems]))


def wrong_values(config: ConfigDict) -> Iterator[str]:
    """A line for each value that cannot be, whatever the others are."""
    for rule in (_choices, _ranges, _addresses):
        yield from rule(config)


def wrong_together(config: ConfigDict) -> Iterator[str]:
    """A line for each value that does not go with another; every one by itself is right."""
    for rule in (_tasks, _data, _encoder, _integration, _language_model, _compute, _training, _evaluation):
        yield from rule(config)


def missing_files(config: ConfigDict, awaited: Collection[str] = ()) -> Iterator[str]:
    """A line for each file or folder that a key names and that is not there.

    Args:
      awaited: keys whose places another run will have filled by then.
    """
    for key, (inside, expected) in _FILES.items():
        value = config_path.get_value(key, config)
        if not value or key in awaited or (key == "llm.checkpoint" and _is_hub_name(value)):
            continue
        if key == "llm.checkpoint" and is_gguf(value):
            inside = ""  # the file is all there is
        if not (Path(value) / inside).exists():
            yield f"{says(config, key)}: {f'no {inside} there' if inside else 'no such file'}; expected {expected}"


def _is_hub_name(name: str) -> bool:
    is_one = re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
    return is_one and not is_gguf(name) and not Path(name).parent.is_dir()


def task_names(config: ConfigDict) -> tuple[str, ...]:
    """The tasks of `config.task`, in its order: "next_item,favorite_category" are two."""
    return tuple(name.strip() for name in config.task.split(","))


def whole_titles(config: ConfigDict) -> int:
    """Titles that an example of stage `user_llm` teaches whole; of its other targets it teaches the first token."""
    return config.integration.targets // config.integration.whole_every


def task_rates(config: ConfigDict) -> tuple[float, ...]:
    """How much of the training each task has, in proportion to their sum; `config.task_rates`, or all the same."""
    return tuple(config.task_rates) or (1.0,) * len(task_names(config))


def says(config: ConfigDict, key: str) -> str:
    return f"config.{key}={config_path.get_value(key, config)!r}"


def _choices(config: ConfigDict) -> Iterator[str]:
    for key, choices in CHOICES.items():
        yield from unlike(config, key, config_path.get_value(key, config), choices)


def unlike(config: ConfigDict, key: str, value: str, choices: Sequence[str]) -> Iterator[str]:
    """A line where `value`, that of `key` or a part of it, is none of `choices`."""
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        yield f"{says(config, key)}: expected {' or '.join(map(repr, choices))}{hint}"


def _ranges(config: ConfigDict) -> Iterator[str]:
    for pattern, (low, high) in RANGES.items():
        for key in [pattern.replace("*", stage) for stage in config.training] if "*" in pattern else [pattern]:
            value = config_path.get_value(key, config)
            if low <= value <= high:  # which nan is not
                continue
            if high not in (_WHOLE, _NUMBER):
                yield f"{says(config, key)}: expected between {low} and {high}"
            else:
                yield f"{says(config, key)}: expected at least {low}" + (" that 32 bits hold" if value > high else "")


def _addresses(config: ConfigDict) -> Iterator[str]:
    for key in _PLACES:
        try:
            local_path(config_path.get_value(key, config), f"config.{key}")
        except UserError as error:
            yield str(error)


def _tasks(config: ConfigDict) -> Iterator[str]:
    rates, tasks = task_rates(config), task_names(config)
    numbers = all(isinstance(rate, (int, float)) and 0 < rate <= _NUMBER for rate in rates)
    if len(rates) != len(tasks) or not numbers or min(rates) < LEAST_RATE * sum(rates):
        yield (
            f"{says(config, 'task_rates')}: expected a number above 0 for each of {', '.join(tasks)}, none of which "
            f"leaves a task less than {LEAST_RATE:.1%} of the training, as in "
            f'"--config.task_rates={tuple(range(len(tasks), 0, -1))}"'
        )


def _data(config: ConfigDict) -> Iterator[str]:
    data, raw_path = config.data, says(config, "data.raw_path")
    family, _, name = data.dataset.partition("/")
    if family not in FAMILIES or not name:
        near = difflib.get_close_matches(family, FAMILIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        yield f"{says(config, 'data.dataset')}: expected family/config with a family of {FAMILIES}{hint}"
    if data.min_history > data.history_length:
        yield (
            f"{says(config, 'data.min_history')} is more than {says(config, 'data.history_length')}: "
            "lower it, or set 0 for full histories only"
        )
    if data.text_history > data.history_length:
        yield (
            f"{says(config, 'data.text_history')} is more than {says(config, 'data.history_length')}; "
            "lower it, or raise the other"
        )
    if data.shards > 1 and data.reader != "windows":
        yield f"{says(config, 'data.shards')} is for the reader windows: SeqIO cuts its examples itself; set 1"
    if data.raw_path and name == "simulated":
        yield f"{raw_path}: {data.dataset} writes its own files; leave this empty, or change data.dataset"
    elif Path(data.raw_path).is_file() and not zipfile.is_zipfile(data.raw_path):
        yield f"{raw_path} is no zip, or a damaged one; expected the dataset's zip, or its folder"


def _encoder(config: ConfigDict) -> Iterator[str]:
    width, num_heads = config.encoder.width, config.encoder.num_heads
    features = tuple(config.encoder.features)
    if width % num_heads:
        example = as_flag("encoder.width", math.ceil(width / num_heads) * num_heads)
        heads = says(config, "encoder.num_heads")
        yield f"{says(config, 'encoder.width')}: expected a multiple of {heads}, as in {example}"
    if features != tuple(feature for feature in FEATURES if feature in features) or "item" not in features:
        yield f"{says(config, 'encoder.features')}: expected 'item' and others of {FEATURES}, in this order"
    if config.encoder.checkpoint and not reads_pretrained_encoder(config):
        key = "integration.kind" if config.integration.kind == "none" else "encoder.init"
        yield f"{says(config, 'encoder.checkpoint')} is not read with {says(config, key)}: leave one of the two out"


def reads_pretrained_encoder(config: ConfigDict) -> bool:
    """Whether the contextualised LLM starts with an encoder that an earlier stage, or another run, has trained."""
    return config.integration.kind != "none" and config.encoder.init == "pretrained"


def _integration(config: ConfigDict) -> Iterator[str]:
    kind, strategy, perceiver = config.integration.kind, config.strategy, config.integration.perceiver
    targets = tuple(config.lora.targets)
    if not targets or targets != tuple(name for name in PROJECTIONS if name in targets):
        yield f"{says(config, 'lora.targets')}: expected some of {PROJECTIONS}, each once and in this order"
    if config.lora.checkpoint and strategy != "lora":
        yield f"{says(config, 'lora.checkpoint')} is for strategy lora; this one is {strategy!r}"
    if config.encoder.width % perceiver.num_heads:
        heads = says(config, "integration.perceiver.num_heads")
        yield f"{says(config, 'encoder.width')}: expected a multiple of {heads}"
    for key in ("integration.targets", "integration.newest"):
        if config_path.get_value(key, config) > config.data.history_length:
            most = says(config, "data.history_length")
            yield f"{says(config, key)} is more than {most}: lower it, or raise the other"
    kind_is = says(config, "integration.kind")
    if config.integration.first_layer and kind != "cross_attention":
        first = says(config, "integration.first_layer")
        yield f"{first} is for blocks of cross-attention, and {kind_is} has none: leave one of the two out"
    if config.lora.first_layer and strategy == "lora" and config.compute.scan_layers:
        first = says(config, "lora.first_layer")
        yield f"{first}: scanned layers are all alike; set 0, or --config.compute.scan_layers=false"
    if kind != "none":
        return
    if config.integration.newest:
        yield f"{kind_is} reads no embeddings, of which config.integration.newest would be the latest: leave it out"
    if strategy in ("enc", "proj"):
        yield f"{kind_is} has no encoder, of which strategy={strategy!r} would train something: take full or lora"
    if perceiver.enabled:
        yield f"{kind_is} has no user embeddings for config.integration.perceiver.enabled=True: leave it out"


def _language_model(config: ConfigDict) -> Iterator[str]:
    llm, prompt = config.llm, config.prompt
    if llm.architecture and llm.checkpoint:
        yield f"{says(config, 'llm.architecture')}: the checkpoint says its own; leave one of the two out"
    if llm.trim_vocabulary and not llm.checkpoint:
        yield f"{says(config, 'llm.trim_vocabulary')} needs a checkpoint's: add --config.llm.checkpoint=FOLDER"
    if llm.checkpoint or llm.architecture:  # whose dimensions replace those of the config
        return
    for key in ("integration.first_layer", "lora.first_layer"):
        if config_path.get_value(key, config) >= llm.num_layers:
            yield f"{says(config, key)}: expected below {says(config, 'llm.num_layers')}"
    if llm.num_heads % llm.num_kv_heads:
        yield f"{says(config, 'llm.num_heads')}: expected a multiple of {says(config, 'llm.num_kv_heads')}"
    if llm.head_dim % 2:
        yield f"{says(config, 'llm.head_dim')}: expected an even number, as rotary positions turn pairs"
    if prompt.max_inputs + prompt.max_targets > llm.max_length:
        inputs, targets = says(config, "prompt.max_inputs"), says(config, "prompt.max_targets")
        yield f"{says(config, 'llm.max_length')}: expected at least {inputs} and {targets} together"


def _compute(config: ConfigDict) -> Iterator[str]:
    if config.compute.remat and not config.compute.scan_layers:
        yield "config.compute.remat=True needs scanned layers: add --config.compute.scan_layers=true"
    sizes = config.compute.mesh.to_dict()
    for axis, size in sizes.items():
        if size != -1 and not 1 <= size <= _WHOLE:
            yield f"{says(config, f'compute.mesh.{axis}')}: expected a number of devices, or -1 for the rest"
    if list(sizes.values()).count(-1) > 1:
        yield f"config.compute.mesh={sizes}: one axis at most can be -1 (the rest); give the others a number"


def _training(config: ConfigDict) -> Iterator[str]:
    for stage in config.stages:
        training, key = config.training[stage], f"training.{stage}"
        if training.batch_size % training.accumulate:
            parts = says(config, f"{key}.accumulate")
            yield f"{says(config, f'{key}.batch_size')}: expected a multiple of {parts}, its number of parts"
        if training.batch_size % config.data.shards:
            yield f"{says(config, f'{key}.batch_size')}: expected a multiple of {says(config, 'data.shards')}"
        if not training.keep_best:
            continue
        wish = says(config, f"{key}.keep_best")
        otherwise = f"or keep the last checkpoint, with --config.{key}.keep_best="
        if not training.eval_every or training.checkpoint_every % training.eval_every:
            yield (
                f"{wish} needs an evaluation at every checkpoint: let --config.{key}.eval_every divide "
                f"{says(config, f'{key}.checkpoint_every')}, {otherwise}"
            )
        if not config.data.validation:
            yield f"{wish} needs validation windows: set --config.data.validation=true, {otherwise}"


def _evaluation(config: ConfigDict) -> Iterator[str]:
    if config.evaluation.cold_share and task_names(config) != ("next_item",):
        yield f"{says(config, 'evaluation.cold_share')} is for answers that are items: set --config.task=next_item"
    if config.evaluation.cold_share and config.encoder.checkpoint:
        cold = says(config, "evaluation.cold_share")
        yield f"{cold}: an encoder of another run may have learnt of these items; leave config.encoder.checkpoint out"
    answers = says(config, "evaluation.answers")
    if config.evaluation.answers != "beams" and not config.evaluation.constrained:
        beams = says(config, "evaluation.constrained")
        yield f"{beams} is for beams of an LLM alone, not for {answers}: leave one of the two out"
    if config.evaluation.second_encoder and config.evaluation.answers != "fused":
        yield f"{says(config, 'evaluation.second_encoder')} is a control of fused answers, and {answers}: leave it out"
    if config.evaluation.answers != "fused":
        return
    if "user_llm" not in config.stages or not ("encoder" in config.stages or config.encoder.checkpoint):
        yield (
            f"{answers} needs a trained encoder beside the contextualised LLM: add 'encoder' and 'user_llm' to "
            "config.stages, or name a run with --config.encoder.checkpoint=WORKDIR"
        )
    if not config.data.validation:
        yield f"{answers} is fitted on validation windows: set --config.data.validation=true"

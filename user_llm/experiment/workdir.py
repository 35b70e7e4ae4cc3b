"""What of a workdir tells whose it is: its config, with the version of the workdir's format."""

import json
from collections.abc import Mapping
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from user_llm.config import refuse
from user_llm.errors import MissingFile, UserError
from user_llm.files import read_json
from user_llm.keys import completed, wrong_keys

FORMAT = 5
"""Raised when what a workdir holds is no longer read as before: so, too, where a new key of the config has a default
that is not what the code did without it."""

CONFIG, ENVIRONMENT, VOCABULARY, CATALOGUE = "config.json", "environment.json", "vocabulary", "catalogue"
FACTS = f"{CATALOGUE}/facts.json"
"""What else a finished run needs of its dataset: the names of the ratings, the fingerprint, `Catalogue.duplicates`."""
RESULTS, PREDICTIONS = "results.json", "predictions.jsonl"
OPERATIVE_GIN = "operative_config.gin"
FUSION = "fusion"
"""How a task's answers are mixed, `TASK.json`, with `evaluation.answers=fused`."""
TRIES = "tries"
"""The names that may be answered as a prefix tree, `TASK/COLUMN.npy`, where there are many."""
REWRITTEN = (ENVIRONMENT, OPERATIVE_GIN, RESULTS, PREDICTIONS)
"""What every start of an unfinished run writes anew."""
PREPARING = ".preparing"
"""Stands in a workdir until its config is written: a start that fails its checks claims nothing."""

ANEW = "put it back from a copy, or start anew in another --workdir"


class NoRun(MissingFile):
    """A workdir without a run, or with one that is not finished."""


def plain(config: ConfigDict) -> dict:
    """The config as JSON has it."""
    return json.loads(config.to_json_best_effort())


def config_text(config: ConfigDict) -> str:
    """What `config.json` holds."""
    return json.dumps({"format": FORMAT, **plain(config)}, indent=2) + "\n"


def read_config(workdir: Path) -> ConfigDict:
    """The config of a run. A key that came after it has its default, which is what the code did before (`FORMAT`).

    Raises:
      NoRun: there is none.
      UserError: it is damaged, somebody else's, or an older or a newer version of this package made it.
    """
    path = workdir / CONFIG
    if not path.is_file():
        raise NoRun(f"{path} does not exist: name the --workdir of a finished run.")
    values = read_json(path, ANEW)
    if not {"stages", "training", "data"} <= {*values}:  # a Hugging Face folder has a config.json, too
        raise UserError(f"{path} is no config of a run: {workdir} is somebody else's folder; name another one")
    if (found := values.pop("format", 1)) != FORMAT:
        age = "a newer" if isinstance(found, int) and found > FORMAT else "an older"
        raise UserError(
            f"{workdir} was made by {age} version of user_llm (format {found} of a workdir, this is {FORMAT}): "
            "run its config again in another --workdir, or take the version that environment.json names"
        )
    config, newer = completed(values)
    refuse(wrong_keys(config), f"{path}: ")
    if newer:
        keys = ", ".join(f"config.{key}" for key in newer)
        logging.info("%s was written before there was %s: taken as the default", path, keys)
    return config


def fingerprint(workdir: Path) -> str:
    """Of the dataset that a run was trained on."""
    return read_json(workdir / FACTS, ANEW)["fingerprint"]


# Where things lie on this machine: they may move between two runs. The dataset's fingerprint guards the data, and the
# checksums of `seal.py` what is borrowed; of that only whether there is any defines a run.
_PLACES = ("data.raw_path", "data.data_dir")
BORROWED = (
    "llm.checkpoint",
    "llm.vocabulary",
    "llm.architecture",
    "lora.checkpoint",
    "encoder.checkpoint",
    "evaluation.second_encoder",
)


def defining(config: ConfigDict) -> dict[str, object]:
    """Dotted key → value, of all that two starts of one run have in common."""
    values = {key: value for key, value in _flat(plain(config)).items() if key not in _PLACES}
    return {key: bool(value) if key in BORROWED else value for key, value in values.items()}


def refuse_another(workdir: Path, config: ConfigDict) -> None:
    """Raises `UserError` where the workdir holds a run of another config."""
    before, now = defining(read_config(workdir)), defining(config)
    changed = [
        f"config.{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise UserError(
            f"{workdir} holds a run of another config; name another --workdir, or delete it. " + "; ".join(changed)
        )


def _flat(tree: Mapping, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return flat

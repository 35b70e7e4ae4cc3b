"""Part quality: encoders trained to their end on the same split, ours and RecTools', all ranked by our metrics.

Takes hours. What is finished is kept in its folder, and a second start goes on where the first was stopped.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers_environment import peers_python
from benchmarks.protocol import MALLOC, REPOSITORY, Unavailable, main_python
from benchmarks.quality_report import contender_row

OURS, TIMED = "ours", "ours, with times"
SASREC, HSTU = "RecTools SASRec softmax", "RecTools HSTU"
# What our contenders change of the config. HSTU reads when the asked event was; SASRec does not.
OURSELVES: dict[str, dict[str, Any]] = {OURS: {}, TIMED: {"encoder.time": "asked"}}
RESULTS, CURVE, RANKS = "results.json", "curve.jsonl", "ranks.npz"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What is trained on.

    Attributes:
      config: ours; the rivals get its sizes, dropout and length of a history.
      thresholds: values of Recall@10 on the validation labels whose seconds are told.
      epochs, patience: of the rivals at most, and without a better Recall@10.
      batch_size: of the rivals, sequences.
    """

    config: str
    thresholds: tuple[float, ...]
    epochs: int
    patience: int
    batch_size: int = 128


DATASETS = {
    "MovieLens-1M": Dataset("configs/ml_1m.py", (0.25, 0.30), epochs=100, patience=10),
    "Amazon Beauty": Dataset("configs/amazon_beauty.py", (0.08, 0.10), epochs=100, patience=10),
}


def measure_quality(
    folder: Path, overrides: dict[str, Any], seeds: tuple[int, int], datasets: dict[str, Dataset], hours: float
) -> dict[str, Any]:
    """Rows of each dataset, by its name.

    Args:
      folder: keeps what is finished.
      overrides: of the configs of all: where data are.
      seeds: how many ours is trained with, from 0, and each rival.
      hours: of a rival's training, at most.
    """
    return {
        name: _dataset_rows(folder / name.replace(" ", "-").lower(), dataset, overrides, seeds, hours)
        for name, dataset in datasets.items()
    }


def _dataset_rows(
    folder: Path, dataset: Dataset, overrides: dict[str, Any], seeds: tuple[int, int], hours: float
) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    split = folder / "split.npz"
    if not split.is_file():
        command = ["benchmarks.quality_files", dataset.config, json.dumps(overrides), str(split)]
        subprocess.run([sys.executable, "-m", *command], cwd=REPOSITORY, check=True)
    rows = []
    for name in (*OURSELVES, SASREC, HSTU):
        runs = []
        for seed in range(seeds[name not in OURSELVES]):
            run = folder / name.replace(",", "").replace(" ", "-").lower() / str(seed)
            try:
                if not (run / RANKS).is_file():
                    _train(name, run, split, dataset, {**overrides, "seed": seed}, hours)
            except (Unavailable, subprocess.CalledProcessError) as error:
                rows.append({"contender": name, "skipped": str(error)})
                break
            runs.append(run)
        else:
            reference = [folder / OURS / str(seed) / RANKS for seed in range(seeds[0])]
            rows.append(contender_row(name, runs, reference, dataset.thresholds))
    return rows


def _train(name: str, folder: Path, split: Path, dataset: Dataset, overrides: dict[str, Any], hours: float) -> None:
    """One contender with one seed, in a process of its own with tuned malloc."""
    if name in OURSELVES:
        python, module = main_python(), "jax_quality"
        options = {"config": dataset.config, "overrides": {**overrides, **OURSELVES[name]}}
    else:
        python, module = peers_python(), "rectools_quality"
        with np.load(split) as file:
            sizes = json.loads(str(file["encoder"]))
        options = {
            "split": str(split),
            "model": "sasrec" if name == SASREC else "hstu",
            "seed": overrides["seed"],
            "epochs": dataset.epochs,
            "patience": dataset.patience,
            "hours": hours,
            "batch_size": dataset.batch_size,
            "learning_rate": 1e-3,
            **sizes,
        }
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(python), "-m", f"benchmarks.contenders.{module}", json.dumps({**options, "folder": str(folder)})]
    environment = {**os.environ, **MALLOC["tuned"]}
    with (folder / "log").open("a") as log:
        subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, check=True)

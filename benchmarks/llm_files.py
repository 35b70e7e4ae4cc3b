"""Makes the files of part llm: the dataset, built; a random language model where none is given; a few batches.

    python -m benchmarks.llm_files FOLDER DATA_DIR [LLM]

A process of its own, so that all memory which that takes is free again. It leaves in FOLDER `facts.json` (keys of the
config that every contender is given, and the language model's layers), `batches.npz` (what PyTorch trains on: the
first batches of our own stream), and the random language model.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.llm_workload import LLAMA, TASK, config_of, dataset, frozen
from user_llm.data.pipeline import TrainBatches
from user_llm.data.vocabularies import TOKENIZER_FILE, train_sentencepiece
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.prepare import prepare
from user_llm.parallel.mesh import one_device

BATCHES, FACTS, NUM_BATCHES = "batches.npz", "facts.json", 4


def make(folder: Path, data_dir: Path, llm: Path | None) -> None:
    """Writes all of it.

    Args:
      data_dir: where the built dataset is kept.
      llm: GGUF file or Hugging Face folder.
    """
    data = {**dataset(), "data.data_dir": str(data_dir)}
    if llm is None:
        llm = folder / "llm"
        llm.mkdir()
        titles = list(Experiment(config_of(data), folder, one_device()).table.catalogue.titles)[1:]
        LLAMA.save(llm)
        train_sentencepiece(titles, 4096, llm / TOKENIZER_FILE)
    overrides = frozen(data, str(llm))
    with tempfile.TemporaryDirectory() as workdir:
        experiment = Experiment(config_of(overrides), Path(workdir), one_device())
        prepare(experiment)
        facts = {
            "data": data,
            "llm": str(llm),
            "language_model": dataclasses.asdict(experiment.assembly.language_model_config),
            "num_items": experiment.catalogue.num_items,
        }
        source, size = experiment.source(TASK, "train"), experiment.config.training.user_llm.batch_size
        stream = TrainBatches(source, size, experiment.config.seed)
        save_batches([stream.batch(step) for step in range(NUM_BATCHES)], folder)
    (folder / FACTS).write_text(json.dumps(facts))


def save_batches(batches: list[Mapping[str, Any]], folder: Path) -> None:
    """Keeps what a model reads, stacked: name → [batches, B, …]."""
    stacked = {name.replace("/", "."): np.stack([batch[name] for batch in batches]) for name in batches[0]}
    np.savez(folder / BATCHES, **stacked)


def load_batches(folder: Path) -> list[dict[str, np.ndarray]]:
    """What `save_batches` kept."""
    with np.load(folder / BATCHES) as file:
        stacked = {name.replace(".", "/"): file[name] for name in file.files}
    return [{name: rows[place] for name, rows in stacked.items()} for place in range(NUM_BATCHES)]


if __name__ == "__main__":
    make(*map(Path, sys.argv[1:3]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)

"""The data and models of one experiment, each made once, on first use. Reads only: `prepare.py` makes the files."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from user_llm.checksums import read_signed, write_signed
from user_llm.config import ConfigError, task_names, task_rates
from user_llm.data.cold import asked_about, choose_cold_items, without_items
from user_llm.data.mixture import Mixture
from user_llm.data.pipeline import TrainSource
from user_llm.data.sources import TextSource, UserLLMSource
from user_llm.data.timelines import Catalogue, TimelineTable, load_timelines
from user_llm.data.vocabularies import Vocabulary, load_vocabulary
from user_llm.data.windows import Windows
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.text_states import TextStates
from user_llm.encoders import ENCODERS
from user_llm.evaluation.baselines import label_counts
from user_llm.evaluation.fusion import Fusion
from user_llm.experiment.assembly import Assembly
from user_llm.experiment.kept_tries import open_trie
from user_llm.experiment.text_states import open_states
from user_llm.experiment.workdir import ANEW, CATALOGUE, FACTS, FUSION, TRIES, VOCABULARY
from user_llm.files import read_json
from user_llm.models.model import Model
from user_llm.parallel.mesh import batch_shards, make_mesh
from user_llm.parallel.processes import lead_makes, several
from user_llm.tasks import TASKS, Task
from user_llm.tasks.task_data import TaskData

_logger = logging.getLogger(__name__)


class Experiment(TaskData):
    """What the stages and the evaluation of one config share.

    Args:
      config: a validated config (`user_llm.schema`).
      workdir: where everything the experiment makes is kept.
      mesh: the devices to use; None: the config's mesh over all of them.
    """

    mesh: Mesh

    def __init__(self, config: ConfigDict, workdir: Path, mesh: Mesh | None = None):
        super().__init__()
        self.config = config
        self.workdir = workdir
        self.mesh = make_mesh(config.compute.mesh) if mesh is None else mesh
        self._states: dict[str, tuple[Model, TextStates]] = {}
        check_batch_sizes(config, batch_shards(self.mesh))

    @functools.cached_property
    def tasks(self) -> tuple[Task, ...]:
        """What the LLM is asked, in the config's order."""
        return tuple(TASKS[name] for name in task_names(self.config))

    @functools.cached_property
    def table(self) -> TimelineTable:
        """The timelines, without the events of cold items."""
        return self.all_events if self.cold_items is None else without_items(self.all_events, self.cold_items)

    @functools.cached_property
    def cold_items(self) -> np.ndarray | None:
        """See `Study`."""
        share = self.config.evaluation.cold_share
        return choose_cold_items(self.all_events.catalogue.num_items, share) if share else None

    @functools.cached_property
    def all_events(self) -> TimelineTable:
        """All timelines; built from the raw files where they are not built yet."""
        data = self.config.data
        return load_timelines(
            data.dataset,
            raw_path=data.raw_path or None,
            data_dir=data.data_dir or None,
            max_malformed=data.max_malformed,
            simulated=data.simulated.to_dict() if data.dataset.endswith("/simulated") else None,
            options=data.amazon_reviews.to_dict() if data.dataset.startswith("amazon_reviews/") else None,
            wait=several(),
        )

    @functools.cached_property
    def _facts(self) -> dict[str, Any]:
        # Kept in the workdir: a finished run needs its dataset no more.
        return read_json(self.workdir / FACTS, ANEW)

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        """The items."""
        return Catalogue.open(self.workdir / CATALOGUE, self._facts["duplicates"])

    @property
    def rating_names(self) -> list[str]:
        """By rating class; "" for 0, the padding."""
        return self._facts["rating_names"]

    @property
    def fingerprint(self) -> str:
        """Of the data the workdir was made of."""
        return self._facts["fingerprint"]

    @functools.cached_property
    def label_counts(self) -> np.ndarray:
        """int64 `[I+1]`: how often each item is the label of a window that the encoder learns from."""
        return label_counts(self.table.item, self.table.catalogue.num_items, [self._encoder_windows("train")])

    def windows(self, split: str, **options: Any) -> Windows:
        """See `TaskData`: with times where the encoder reads them, with all that was met where that is no answer."""
        seen = split != "train" and self.config.evaluation.exclude == "timeline"
        return super().windows(split, times=bool(self.config.encoder.time), seen=seen, **options)

    def cold_source(self, task: str, most: int) -> UserLLMSource:
        """See `Study`."""
        if self.cold_items is None:
            return super().cold_source(task, most)  # there is none
        data, exclude = self.config.data, self.config.evaluation.exclude
        windows = Windows(
            asked_about(self.all_events, self.cold_items, most),
            history_length=data.history_length,
            split="test",
            min_history=data.min_history or None,
            times=bool(self.config.encoder.time),
            seen=exclude == "timeline",
        )
        return UserLLMSource(windows, self.prompts(task), self.answers(task))

    def _encoder_windows(self, split: str) -> Windows:
        return self.windows(split, stride=self.config.encoder.stride) if split == "train" else self.windows(split)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The LLM's vocabulary."""
        return load_vocabulary(self.workdir / VOCABULARY)

    def answer_trie(self, task: str) -> CatalogueTrie:
        """See `TaskData`; mapped from the workdir where it is kept there."""
        if task not in self._tries and (kept := open_trie(self.workdir / TRIES / task)):
            self._tries[task] = kept
        return super().answer_trie(task)

    def text_states(self, task: str, model: Model) -> TextStates | None:
        """See `Study`; opened once a model, as weights and texts are read for it."""
        if task not in self._states or self._states[task][0] is not model:
            kept = open_states(self, task, model)
            if kept is None:
                return None
            self._states[task] = model, kept.on(model.mesh)
        return self._states[task][1]

    def fusion(self, task: str, fit: Callable[[], Fusion]) -> Fusion:
        """See `Study`; kept in the workdir."""
        path = self.workdir / FUSION / f"{task}.json"
        if not path.is_file():
            fitted = fit()
            lead_makes(path, lambda: write_signed(path, fitted._asdict()))
        return Fusion(**read_signed(path, ANEW))

    def answered_prompts(self, split: str) -> UserLLMSource | Mixture:
        """What the contextualised LLM reads of a split: of its task, or of all its tasks in their proportions."""
        sources = [self.source(task.name, split) for task in self.tasks]
        return sources[0] if len(sources) == 1 else Mixture(sources, task_rates(self.config))

    def encoder_source(self, split: str) -> TrainSource:
        """What the encoder learns from."""
        config = self.config.encoder
        return ENCODERS[config.kind].source(config, self._encoder_windows(split), self.catalogue.item_categories)

    @functools.cached_property
    def text_source(self) -> TextSource:
        """What a language model trained from scratch reads."""
        source = TextSource(self.documents, self.answered_prompts("train"), max_length=self.config.llm.max_length)
        _logger.info("%d texts to learn from; %d documents cut at llm.max_length", len(source), source.documents.cut)
        return source

    @functools.cached_property
    def assembly(self) -> Assembly:
        """The models."""
        catalogue = self.catalogue
        return Assembly(
            config=self.config,
            item_categories=catalogue.item_categories,
            num_categories=len(catalogue.category_names) - 1,
            num_ratings=len(self.rating_names) - 1,
            vocabulary_size=self.vocabulary.rows,
        )


def check_batch_sizes(config: ConfigDict, shards: int) -> None:
    """Raises ConfigError where a batch does not divide among the `shards` that a mesh cuts it into."""
    sizes = {
        f"training.{name}.batch_size / accumulate": config.training[name].batch_size // config.training[name].accumulate
        for name in config.stages
    }
    for key, size in {**sizes, "evaluation.batch_size": config.evaluation.batch_size}.items():
        if size % shards:
            raise ConfigError(f"config.{key} = {size}: expected a multiple of the {shards} devices a batch is cut over")

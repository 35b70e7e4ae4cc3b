"""What a stage is: a model, where its parameters come from, what it learns from what, and what it leaves behind."""

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from user_llm.checkpoints.damage import complete_steps, refuse_damaged
from user_llm.checkpoints.manager import StageCheckpoints
from user_llm.checkpoints.transfer import Layout, initialise
from user_llm.data.by_length import by_length
from user_llm.data.mixture import Mixture, train_batches
from user_llm.data.pipeline import Source, TrainSource
from user_llm.evaluation.evaluator import Subset, mean_metrics
from user_llm.experiment.assembly import Assembly
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.workdir import NoRun
from user_llm.models import parameters
from user_llm.models.model import Model
from user_llm.models.parameters import Builder, Parameters
from user_llm.parallel.mesh import batch_shards, local_rows, put_whole
from user_llm.parallel.processes import fetch, several
from user_llm.training.loop import Batches, TrainingRun
from user_llm.training.objectives import Objective
from user_llm.training.optimizer import Pace
from user_llm.training.trainable import EVERYTHING, Rules, trainable

Validation = Callable[[Model], dict[str, float]]
Reader = Callable[[Any], Source]
"""What gathers the examples of a `TrainSource` or a `Mixture`: it, or something around it."""

_WORTH_COMPILING = 1000  # steps


class Stage(abc.ABC):
    """One training of an experiment, by the name that `config.stages` and `config.training` have for it.

    Attributes:
      name: also its folder in the workdir.
      metrics: of its validation, those that `keep_best` may name.
      held_at_once: keys whose product is held at once, in weights or in what a batch becomes in the first layer: far
        below what a step needs, and known without building a model, which takes as long as it has layers.
      reads_text: whether its batches have the decoder's features.
    """

    name: str
    held_at_once: tuple[tuple[str, ...], ...] = ()
    metrics: tuple[str, ...] = ("loss",)
    reads_text: bool = False

    @abc.abstractmethod
    def builder(self, assembly: Assembly) -> Builder:
        """How its model is built."""

    def rules(self, config: ConfigDict) -> Rules:
        """Which of its parameters train."""
        del config
        return EVERYTHING

    def is_elsewhere(self, config: ConfigDict) -> bool:
        """Whether another run, or somebody else, has trained it."""
        del config
        return False

    def borrowed(self, experiment: Experiment) -> Model | None:
        """The finished model of another run, where the config names one that is needed."""
        del experiment
        return None

    def pretrained(self, experiment: Experiment, finished: Mapping[str, Model]) -> tuple[Parameters, Parameters]:
        """Parameters that are not random at the start: of earlier stages, and loaded for this one alone."""
        del experiment, finished
        return {}, {}

    @abc.abstractmethod
    def source(self, experiment: Experiment, split: str) -> TrainSource | Mixture:
        """What it reads of a split."""

    @abc.abstractmethod
    def objective(self, experiment: Experiment) -> Objective:
        """What it minimises."""

    @abc.abstractmethod
    def positions(self, experiment: Experiment, sizes: Mapping[str, int]) -> int:
        """Parameters times the positions of an example that each meets: N D an example, for `inspect/cost.py`.

        Args:
          sizes: path → number of parameters.
        """

    @abc.abstractmethod
    def softmax(self, assembly: Assembly) -> tuple[int, int]:
        """Rows of logits that an example has in the loss, at most, and the classes of the widest."""

    def rows_read(self, config: ConfigDict) -> int | None:
        """Rows of the table of the items that a step reads, at most; None where it reads all."""
        del config
        return None

    def export(self, experiment: Experiment, model: Model) -> str | None:
        """Leaves its finished model for others to load, in a format that is not ours alone.

        Returns: the folder's name in the workdir; None for nothing.
        """
        del experiment, model
        return None

    def component(self, path: str) -> str:
        """What a parameter belongs to, in the table of parameters."""
        del path
        return self.name

    def problems(self, config: ConfigDict) -> Iterator[str]:
        """A line for each value of the config that does not go with this stage; `config.stages` has it."""
        del config
        yield from ()

    def initial(self, experiment: Experiment, finished: Mapping[str, Model]) -> Model:
        """Its model before the first step: what is pretrained, the rest random."""
        return self._model(experiment, *self.pretrained(experiment, finished))

    def reader(self, experiment: Experiment, model: Model) -> Reader:
        """How its examples are gathered for `model`."""
        del experiment, model
        return lambda source: source

    def paces(self, config: ConfigDict) -> Mapping[str, Pace]:
        """Of parameters by the beginning of their path, where they do not all move alike."""
        del config
        return {}

    def training_run(self, experiment: Experiment, model: Model) -> TrainingRun:
        """All that the training loop wants to know."""
        config, objective = experiment.config, put_whole(self.objective(experiment), experiment.mesh)
        reader = self.reader(experiment, model)
        return TrainingRun(
            name=self.name,
            config=config.training[self.name],
            model=model,
            axes=parameters.logical_axes(parameters.abstract(self.builder(experiment.assembly))),
            rules=self.rules(config),
            objective=objective,
            batches=self.denser_batches(experiment, reader),
            evaluate=self.validation(experiment, objective, reader) if config.data.validation else None,
            paces=self.paces(config),
        )

    def batches(self, experiment: Experiment, reader: Reader) -> Batches:
        """What it trains on, in order."""
        config, size = experiment.config, experiment.config.training[self.name].batch_size
        rows = local_rows(experiment.mesh, size)
        if config.data.reader == "seqio":
            return self.seqio_batches(experiment, size, rows)
        source = self.source(experiment, "train")
        return train_batches(source, size, config.seed, rows=rows, shards=config.data.shards, reader=reader(source))

    def denser_batches(self, experiment: Experiment, reader: Reader) -> Batches:
        """What it trains on, with less padding where that pays: here, texts grouped by their length."""
        batches = self.batches(experiment, reader)
        return self.grouped(experiment, batches) if self.reads_text else batches

    def grouped(self, experiment: Experiment, batches: Batches) -> Batches:
        """Batches of texts in groups by their length, where that pays."""
        training, mesh = experiment.config.training[self.name], experiment.mesh
        # Microbatches would cut the groups. Of several processes none sees the whole batch, and where weights are cut
        # (fsdp), every group would gather them anew. A short training takes less time than what groups cost to compile.
        plain = training.accumulate > 1 or several() or mesh.shape["fsdp"] > 1 or training.steps < _WORTH_COMPILING
        return batches if plain else by_length(batches, batch_shards(mesh))

    def seqio_batches(self, experiment: Experiment, batch_size: int, rows: np.ndarray) -> Batches:
        """The same through SeqIO: the `rows` of batches of `batch_size`. A source of windows is read as it is."""
        from user_llm.seqio_road import reader  # TensorFlow and SeqIO take seconds: only where they are asked for

        return reader.encoder_batches(self.source(experiment, "train"), batch_size, experiment.config.seed, rows=rows)

    def validation_source(self, experiment: Experiment, reader: Reader) -> Source:
        """Of the validation windows, as many as the config looks at."""
        source = reader(self.source(experiment, "validation"))
        return Subset.evenly(source, experiment.config.evaluation.max_validation)

    def validation(self, experiment: Experiment, objective: Objective, reader: Reader) -> Validation:
        """Metrics on the validation windows: the objective's own."""
        source = self.validation_source(experiment, reader)
        return mean_metrics(objective, source, experiment.config.evaluation.batch_size)

    def restore(self, experiment: Experiment, finished: Mapping[str, Model]) -> Model:
        """The model of a finished run, without its data, optimizer or metrics.

        Raises:
          NoRun: there is no checkpoint, or none of the last step yet.
        """
        folder, training = experiment.workdir / self.name, experiment.config.training[self.name]
        with contextlib.closing(self._finished_checkpoints(folder, training)) as checkpoints:
            best = cast(int, checkpoints.best_step())  # it is finished
            refuse_damaged(folder, best)
            layout = Layout.of(self.builder(experiment.assembly), experiment.config.seed, experiment.mesh)
            trains = trainable(layout.parameters, self.rules(experiment.config))
            places = {path: place for path, place in layout.parameters.items() if trains[path]}
            tuned = checkpoints.restore_parameters(best, places)
        earlier, loaded = ({}, {}) if all(trains.values()) else self.pretrained(experiment, finished)
        return self._model(experiment, earlier, {**loaded, **tuned}, layout)

    def _model(
        self, experiment: Experiment, earlier: Parameters, own: Parameters, layout: Layout | None = None
    ) -> Model:
        """Its model with these parameters, those of `own` where they lie, and the rest random."""
        config = experiment.config
        graphdef, values, buffers = initialise(
            self.builder(experiment.assembly), config.seed, experiment.mesh, earlier, own, layout
        )
        trains, frozen_dtype = trainable(values, self.rules(config)), jnp.dtype(config.compute.frozen_dtype)
        values = {path: value if trains[path] else value.astype(frozen_dtype) for path, value in values.items()}
        return Model(graphdef, values, buffers, experiment.mesh)

    def _finished_checkpoints(self, folder: Path, training: ConfigDict) -> StageCheckpoints:
        unfinished = "this run is not finished; run its command again."
        if not (folder / "checkpoints").is_dir():
            raise NoRun(f"{folder} has no checkpoints: {unfinished}")
        for step in complete_steps(folder):  # by which Orbax finds the best
            refuse_damaged(folder, step, item="metrics/")
        checkpoints = StageCheckpoints(folder, keep_best=bool(training.keep_best), read_only=True)
        if (step := checkpoints.latest_step() or 0) < training.steps:
            checkpoints.close()
            raise NoRun(f"{folder} is at step {step} of {training.steps}: {unfinished}")
        return checkpoints


def on_hosts(values: Parameters) -> Parameters:
    """Parameters that this process can read: what lies on devices of other processes too is fetched."""
    # What is fetched is NumPy's, of which its readers, who write files, ask the same.
    return {
        path: value if value.is_fully_addressable else cast(jax.Array, fetch(value)) for path, value in values.items()
    }

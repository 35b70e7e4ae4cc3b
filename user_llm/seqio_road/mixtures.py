"""SeqIO mixtures of our tasks, in the order of the array road's own (`data.mixture`)."""

import hashlib
from collections.abc import Sequence

import numpy as np
import seqio
import tensorflow as tf

from user_llm.data.mixture import Turns, part_seed
from user_llm.errors import UserError
from user_llm.seqio_road.sources import CHUNK
from user_llm.seqio_road.tasks import ArrayTask, find


class TaskMixture(seqio.Mixture):
    """Tasks in turns, each in its own shuffled epochs: a pure function of seed and position.

    Args:
        name: of the mixture.
        tasks: those mixed, of different names.
        rates: how much of the examples each has, in proportion to their sum.
        start: at which position a dataset begins, as if the examples before had been skipped; with its seed.

    Raises:
        UserError: not one rate above 0 a task, or a task twice.
    """

    def __init__(self, name: str, tasks: Sequence[ArrayTask], rates: Sequence[float], start: tuple[int, int] = (0, 0)):
        names = [task.name for task in tasks]
        if len(rates) != len(tasks) or not names or min(rates) <= 0 or len(set(names)) < len(names):
            raise UserError(f"expected different tasks with a rate above 0 each, got {names} with {tuple(rates)}.")
        self._members, self._rates, self._start = tuple(tasks), tuple(rates), start[0]
        self._shares = np.asarray(rates, float) / np.sum(rates)
        self._place = np.argsort(np.argsort(names))  # SeqIO sorts tasks by name
        begin, count = Turns(self._shares, start[1]).before(start[0]).tolist(), len(tasks)
        sources = [
            task.source.seeded(lambda seed, index=index: part_seed(seed, index, count)).starting_at(begin[index])
            for index, task in enumerate(tasks)
        ]
        seeded = [task.replace(source=source) for task, source in zip(tasks, sources, strict=True)]
        super().__init__(name, list(zip(seeded, rates, strict=True)), sample_fn=self._mix)

    def starting_at(self, number: int, seed: int) -> "TaskMixture":
        """The same, but a dataset of this seed begins `number` examples later, as if those had been skipped."""
        return TaskMixture(self.name, self._members, self._rates, (number, seed))

    def _mix(self, datasets: list[tf.data.Dataset], rates: Sequence[float], seed: int | None) -> tf.data.Dataset:
        del rates  # by name, as the datasets
        if len(datasets) < len(self._members):
            raise UserError(f"not all tasks of {self.name} have this split: mix tasks with the same splits.")
        turns = Turns(self._shares, int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else int(seed))

        def choose(at: np.int64) -> np.ndarray:
            return self._place[turns.at(np.arange(at, at + CHUNK))[0]]

        starts = tf.data.Dataset.range(self._start, np.iinfo(np.int64).max, CHUNK)
        choices = starts.map(lambda at: tf.ensure_shape(tf.numpy_function(choose, [at], tf.int64), [CHUNK]))
        return tf.data.Dataset.choose_from_datasets(datasets, choices.unbatch(), stop_on_empty_dataset=True)


def register_mixture(names: Sequence[str], rates: Sequence[float], *, name: str = "") -> str:
    """Registers a mixture of registered tasks of ours and returns its name.

    Through `UserLLMFeatureConverter` with `tasks.task_lengths(name)`, its examples have one shape, of the widest task.

    Args:
        names: of the tasks, as `tasks.register_study` gives them.
        rates: how much of the examples each has, in proportion to their sum.
        name: of the mixture; "" makes one of tasks and rates.

    Raises:
        UserError: no such task, or what `TaskMixture` refuses.
    """
    told = repr((tuple(names), tuple(map(float, rates))))
    name = name or f"user_llm_mixture_{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    mixture = TaskMixture(name, [find(task) for task in names], rates)
    seqio.MixtureRegistry.remove(name)
    seqio.MixtureRegistry.add_provider(name, mixture)
    return name

"""SeqIO as the trainer's reader: batches of `seqio.get_dataset` in place of `data.pipeline.TrainBatches`.

Alone, a process reads the very batches of the array road, but for the stage `llm`. Of several, each reads shards of the
same permutations.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from user_llm.data.mixture import Mixture
from user_llm.data.pipeline import Source
from user_llm.data.sources import TextSource, UserLLMSource
from user_llm.errors import UserError
from user_llm.seqio_road.feature_converters import (
    EncoderFeatureConverter,
    TextFeatureConverter,
    UserLLMFeatureConverter,
)
from user_llm.seqio_road.mixtures import TaskMixture
from user_llm.seqio_road.sources import ArraySource, Lifted
from user_llm.seqio_road.tasks import ArrayTask, answered_lengths, find, register_study
from user_llm.tasks import Study

_logger = logging.getLogger(__name__)


class SeqIOBatches:
    """Endless training batches from SeqIO, in an order that the seed alone gives (see `training.loop.Batches`).

    Every epoch has an order of its own, and reading begins at any step: our tasks and mixtures skip what lies before
    by arithmetic, others example by example.

    Args:
        examples: a task or mixture, or the name of a registered one.
        lengths: of its features, for SeqIO.
        converter: to what the model reads.
        batch_size: rows of the global batch.
        seed: a non-negative integer.
        rows: int `[rows]`, those of the global batch to read here (`parallel.mesh.local_rows`); None: all.
        shuffle: whether to; False reads the examples in their order, epoch after epoch.

    Raises:
        UserError: an unknown name, or rows that are no shard of the batch.
    """

    def __init__(
        self,
        examples: str | seqio.Task | seqio.Mixture,
        lengths: Mapping[str, int],
        converter: seqio.FeatureConverter,
        batch_size: int,
        seed: int,
        *,
        rows: np.ndarray | None = None,
        shuffle: bool = True,
    ):
        rows = np.arange(batch_size) if rows is None else np.asarray(rows)
        self._size = len(rows)
        if not self._size or batch_size % self._size or rows[0] % self._size or np.ptp(rows) != self._size - 1:
            raise UserError(
                f"rows {rows.tolist()} are no shard of a batch of {batch_size}: SeqIO reads equal, contiguous shards. "
                "Set --config.data.reader=windows, or a mesh that cuts batches so."
            )
        self._shards, self._shard = batch_size // self._size, int(rows[0]) // self._size
        self._examples = find(examples) if isinstance(examples, str) else examples
        self._lengths, self._converter, self._seed, self._shuffle = dict(lengths), converter, seed, shuffle
        for task in seqio.get_subtasks(self._examples):
            if task.num_input_examples("train") < self._shards:
                raise UserError(
                    f"{task.name} has {task.num_input_examples('train')} training examples for {self._shards} "
                    "processes: lower history_length or min_history, or use fewer processes."
                )

    def iterator(self, start_step: int = 0, *, threads: int = 2, prefetch: int = 4) -> Iterator[dict[str, np.ndarray]]:
        """This process' rows of the batches from `start_step` on, up to `prefetch` of them made ahead by `threads`."""
        options = tf.data.Options()
        options.deterministic = True
        options.threading.private_threadpool_size = threads
        dataset = self._dataset(self._shard, start_step).prefetch(prefetch).with_options(options)
        return iter(dataset.as_numpy_iterator())

    def whole_batch(self, step: int) -> dict[str, np.ndarray]:
        """All rows of the batch at a step, in any process."""
        parts = [next(iter(self._dataset(shard, step).as_numpy_iterator())) for shard in range(self._shards)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _dataset(self, shard: int, step: int) -> tf.data.Dataset:
        skipped, examples = step * self._size, self._examples
        starts_anywhere = hasattr(examples, "starting_at")
        if starts_anywhere:
            examples = examples.starting_at(skipped, self._seed)
        dataset = seqio.get_dataset(
            examples,
            self._lengths,
            self._converter,
            shuffle=self._shuffle,
            num_epochs=None,
            shard_info=seqio.ShardInfo(shard, self._shards),
            verbose=False,
            seed=self._seed,
            trim_output_features=False,  # the converters give fixed lengths, and our tasks refuse to be cut
        )
        if skipped and not starts_anywhere:
            _logger.info("SeqIO reads and drops the %d examples before step %d, which takes a while", skipped, step)
            dataset = dataset.skip(skipped)
        return dataset.batch(self._size, drop_remainder=True)


def encoder_batches(source: Source, batch_size: int, seed: int, *, rows: np.ndarray | None = None) -> SeqIOBatches:
    """Of whatever source an encoder learns from (`Windows`, or one with more features), a SeqIO task of its own."""
    batch = source.gather(np.arange(1))
    features = {
        name: seqio.ContinuousFeature(dtype=tf.as_dtype(values.dtype), rank=max(values.ndim - 1, 1))
        for name, values in batch.items()
    }
    lengths = {name: values.shape[1] if values.ndim > 1 else 1 for name, values in batch.items()}
    task = _task("user_llm_encoder", Lifted(source), features, [])
    return SeqIOBatches(task, lengths, EncoderFeatureConverter(batch), batch_size, seed, rows=rows)


def user_llm_batches(
    study: Study, answered: UserLLMSource | Mixture, batch_size: int, seed: int, *, rows: np.ndarray | None = None
) -> SeqIOBatches:
    """Of an experiment's answered training prompts: its registered task, or a mixture of several.

    Args:
        study: whose tasks are registered.
        answered: what the array road reads of them, which says how they are mixed.
        batch_size, seed, rows: see `SeqIOBatches`.
    """
    tasks = [find(name) for name in register_study(study)]
    sources, rates = _mixed(answered)
    examples = tasks[0] if len(tasks) == 1 else TaskMixture("user_llm_mixture", tasks, rates)
    return SeqIOBatches(examples, answered_lengths(sources), UserLLMFeatureConverter(), batch_size, seed, rows=rows)


def llm_batches(
    study: Study,
    answered: UserLLMSource | Mixture,
    text: TextSource,
    batch_size: int,
    seed: int,
    *,
    rows: np.ndarray | None = None,
) -> SeqIOBatches:
    """Of documents and answered prompts, half and half, as texts of one length.

    Args:
        study, answered: as for `user_llm_batches`.
        text: what the array road reads, which has the documents and the length.
        batch_size, seed, rows: see `SeqIOBatches`.
    """
    sources, rates = _mixed(answered)
    tasks = [find(name) for name in register_study(study)]
    pieces = {name: tasks[0].output_features[name] for name in ("inputs", "targets")}
    documents = _task("user_llm_documents", text.documents, pieces, [_as_text])
    mixed = [documents, *(task.replace(output_features=pieces) for task in tasks)]
    shares = [0.5, *(np.asarray(rates) / np.sum(rates) / 2)]
    lengths = {name: answered_lengths(sources)[name] for name in pieces}
    return SeqIOBatches(
        TaskMixture("user_llm_text", mixed, shares),
        lengths,
        TextFeatureConverter(text.length),
        batch_size,
        seed,
        rows=rows,
    )


def _task(name: str, source: Source, features: Mapping[str, seqio.Feature], preprocessors: list) -> ArrayTask:
    """A task on training examples that only the trainer reads: it stays out of SeqIO's registry."""
    return ArrayTask(
        name=name,
        source=ArraySource(lambda split: source, ["train"]),
        preprocessors=preprocessors,
        output_features=features,
        shuffle_buffer_size=None,
    )


def _mixed(answered: UserLLMSource | Mixture) -> tuple[Sequence[UserLLMSource], Sequence[float]]:
    return (answered.sources, answered.rates) if isinstance(answered, Mixture) else ([answered], [1.0])


def _as_text(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Documents as `targets` behind an empty prompt, cut to their length."""
    return dataset.map(
        lambda example: {
            "inputs": tf.zeros([0], tf.int32),
            "targets": tf.cast(example["tokens"][: example["lengths"]], tf.int32),
        },
        num_parallel_calls=tf.data.AUTOTUNE,
    )

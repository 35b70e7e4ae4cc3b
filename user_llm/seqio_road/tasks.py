"""The paper's tasks in SeqIO's registry: source, preprocessors and features of each. They know no model."""

from collections.abc import Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from user_llm.data.answers import Answers
from user_llm.data.prompts import Prompts
from user_llm.data.splits import SPLITS
from user_llm.data.timelines import TimelineTable
from user_llm.data.windows import Windows
from user_llm.seqio_road.preprocessors import AddUserIds, WritePrompts, write_answers

_CHUNK = 1024  # windows gathered at once


class WindowSource(seqio.DataSource):
    """Windows as a SeqIO source, one window an example: the features of `Windows.gather`, and `label/event`.

    That is the label's place in the flat columns, int64, by which its review is found.

    A shuffled read is one permutation of all windows, no buffer; any number of shards will do.

    Args:
        windows: the windows of each split.
    """

    def __init__(self, windows: Mapping[str, Windows]):
        self._windows = dict(windows)
        counts = {split: len(windows) for split, windows in self._windows.items()}
        super().__init__(splits=counts, num_input_examples=counts, performs_internal_shuffling=True)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length: Mapping[str, int] | None = None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        """One pass over a split; the last three arguments are SeqIO's interface, and of no effect."""
        windows = self._windows[split]
        order = np.arange(len(windows))
        if shuffle:
            order = np.random.default_rng(seed).permutation(order)
        if shard_info is not None:
            order = order[shard_info.index :: shard_info.num_shards]
        history = (windows.history_length,)
        shapes = {"history/item": history, "history/rating": history, "label/item": (), "label/rating": (), "user": ()}
        shapes["label/event"] = ()

        def gather(chunk):
            ids = order[chunk * _CHUNK : (chunk + 1) * _CHUNK]
            batch = {**windows.gather(ids), "label/event": windows.label_positions(ids)}
            return [batch[name] for name in shapes]

        def read(chunk):
            values = tf.numpy_function(gather, [chunk], [tf.int32] * (len(shapes) - 1) + [tf.int64])
            for value, shape in zip(values, shapes.values(), strict=True):
                value.set_shape((None, *shape))
            return dict(zip(shapes, values, strict=True))

        chunks = tf.data.Dataset.range(-(-len(order) // _CHUNK))
        return chunks.map(read, num_parallel_calls=tf.data.AUTOTUNE).unbatch()


def task_name(
    dataset: str,
    wording: str,
    *,
    history_length: int,
    min_history: int | None = None,
    validation: bool = False,
    text_history: int = 0,
) -> str:
    """The task's name, wording and options included: "movielens_20m.next_item_v1.n50", "….n50_min5_val_tp10"."""
    options = [f"n{history_length}"]
    if min_history not in (None, history_length):
        options.append(f"min{min_history}")
    if validation:
        options.append("val")
    if text_history:
        options.append(f"tp{text_history}")
    return f"{dataset.replace('/', '_')}.{wording}.{'_'.join(options)}"


def register_task(
    table: TimelineTable,
    prompts: Prompts,
    answers: Answers,
    *,
    history_length: int,
    min_history: int | None = None,
    validation: bool = False,
) -> seqio.Task:
    """Registers a task on a dataset, in place of one registered under the same name before.

    Its examples have `history/item`, `history/rating` [S], `inputs` (the prompt) and `targets` (answer and EOS), and
    pass through `label/item`, `label/rating`, `label/event`, `label/answer`, `user`, `dropped_events`, `references`
    (the answer in words) and `user_id`.

    Args:
        table: the timelines.
        prompts, answers: of the task, in tokens.
        history_length, min_history, validation: as for `Windows`.
    """
    options = dict(history_length=history_length, min_history=min_history, validation=validation)
    splits = [split for split in SPLITS if split != "validation" or validation]
    name = task_name(table.name, prompts.wording.name, text_history=prompts.text_history, **options)
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    text = seqio.Feature(prompts.names.titles.vocabulary, add_eos=False)  # targets bring their EOS
    items = seqio.Feature(seqio.PassThroughVocabulary(table.catalogue.num_items + 1), add_eos=False)
    ratings = seqio.Feature(seqio.PassThroughVocabulary(len(table.rating_names)), add_eos=False)
    return seqio.TaskRegistry.add(
        name,
        source=WindowSource({split: Windows(table, split=split, **options) for split in splits}),
        preprocessors=[WritePrompts(prompts), write_answers(answers, table), AddUserIds(table)],
        output_features={"inputs": text, "targets": text, "history/item": items, "history/rating": ratings},
        shuffle_buffer_size=None,
    )


def task_feature_lengths(prompts: Prompts, answers: Answers, history_length: int) -> dict[str, int]:
    """Lengths for `UserLLMFeatureConverter` that cut nothing; scalars count as 1."""
    scalars = ("label/item", "label/rating", "label/answer", "user", "dropped_events")
    return {
        "inputs": prompts.length,
        "targets": answers.width,
        "history/item": history_length,
        "history/rating": history_length,
        **dict.fromkeys(scalars, 1),
    }

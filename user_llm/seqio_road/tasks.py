"""Our tasks in SeqIO's registry: source, preprocessors, features and metrics of each. They know no model.

Everything is made of the array road's own code, so a task of yours (`user_llm.tasks.TASKS.register`) is registered here
like one of ours. `user_llm.seqio_road.registered` has a task for every dataset by name.
"""

import dataclasses
import difflib
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from user_llm.builders.families import dataset_names
from user_llm.config import task_names
from user_llm.data.sources import UserLLMSource
from user_llm.data.splits import SPLITS
from user_llm.data.vocabulary import Vocabulary
from user_llm.errors import UserError
from user_llm.seqio_road.preprocessors import NUMBERS, RefuseToCut, WriteAnsweredPrompts
from user_llm.seqio_road.sources import ArraySource, WindowEvents
from user_llm.seqio_road.study import REVIEW_ROOM, DatasetStudy, TaskOptions
from user_llm.seqio_road.vocabularies import SeqIOVocabulary
from user_llm.tasks import TASKS, Study, Task

Answered = Callable[[str], UserLLMSource]  # split → its windows with prompts and answers, each made once


class ArrayTask(seqio.Task):
    """A SeqIO task over an `ArraySource`.

    Args:
        answered: of a task with prompts and answers: split → its source.
        arguments: of `seqio.Task`.
    """

    def __init__(self, *, answered: Answered | None = None, **arguments):
        super().__init__(**arguments)
        self.answered = answered
        self._arguments = {**arguments, "answered": answered}

    def replace(self, **arguments) -> "ArrayTask":
        """The same task with other arguments."""
        return type(self)(**{**self._arguments, **arguments})

    def starting_at(self, number: int, seed: int) -> "ArrayTask":
        """The same, but a dataset begins `number` examples later, as if those had been skipped: epochs and all."""
        del seed
        return self.replace(source=self.source.starting_at(number))

    def get_dataset(self, *args, **kwargs) -> tf.data.Dataset:
        """As in SeqIO, but no source is kept in memory: SeqIO would keep its order with it, for all epochs."""
        return super().get_dataset(*args, **{**kwargs, "try_in_mem_cache": False})


def answered_task(
    name: str, task: Task, answered: Answered, splits: Sequence[str], *, vocabulary: Callable[[], Vocabulary]
) -> ArrayTask:
    """A SeqIO task on the windows of a dataset. Nothing is made of the dataset before it is used.

    Its examples have, as int32, `history/item`, `history/rating` [S], `inputs` (the prompt) and `targets` (answer and
    EOS), unpadded, and [1] each `label/item`, `label/rating`, `label/answer`, `user`, `dropped_events`. Further
    `label/event` (int64, the label's place in the flat columns), `references` (the answer in words) and `user_id`.

    Args:
        name: in SeqIO's registry.
        task: whose metrics it has.
        answered: split → its windows with prompts and answers, called on use.
        splits: their names.
        vocabulary: of the tokens, called on use.
    """
    answered = functools.cache(answered)
    train = functools.partial(answered, splits[0])
    text = seqio.Feature(SeqIOVocabulary(vocabulary), add_eos=False)  # targets bring their EOS
    number = seqio.ContinuousFeature()
    return ArrayTask(
        name=name,
        answered=answered,
        source=ArraySource(lambda split: WindowEvents(answered(split).windows), splits),
        preprocessors=[WriteAnsweredPrompts(train), seqio.CacheDatasetPlaceholder(), RefuseToCut(train)],
        output_features={
            **dict.fromkeys(("inputs", "targets"), text),
            **dict.fromkeys(("history/item", "history/rating", *NUMBERS), number),
        },
        postprocess_fn=functools.partial(_in_words, task, train),
        metric_fns=list(task.metric_fns),
        shuffle_buffer_size=None,
    )


def _in_words(
    task: Task, answered: Callable[[], UserLLMSource], text: Any, *, example: Mapping[str, Any], is_target: bool
) -> Any:
    """What metrics compare: names as their tokens spell them, which a long one's cut off, but free text whole."""
    if is_target and task.answer_names(answered().prompts.names) is None:
        return example["references"].decode()
    return text


def task_lengths(name: str) -> dict[str, int]:
    """Lengths for `UserLLMFeatureConverter` that cut nothing, of a registered task or mixture of ours.

    Raises:
        UserError: there is none of that name.
    """
    return answered_lengths([task.answered("train") for task in seqio.get_subtasks(find(name))])


def answered_lengths(sources: Iterable[UserLLMSource]) -> dict[str, int]:
    """The same for tasks of these sources, or a mixture of them: widths of the widest; numbers count as 1."""
    sources = list(sources)
    history = sources[0].windows.history_length
    return {
        "inputs": max(source.prompt_length for source in sources),
        "targets": max(source.answer_width for source in sources),
        "history/item": history,
        "history/rating": history,
        **dict.fromkeys(NUMBERS, 1),
    }


def find(name: str) -> seqio.Task | seqio.Mixture:
    """A registered task or mixture.

    Raises:
        UserError: there is none of that name; the message says which come near.
    """
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name not in known:
        raise UserError(f"no SeqIO task or mixture is called {name!r}: {_near(name, known)}")
    return seqio.get_mixture_or_task(name)


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(known)}."


def register(dataset: str, task: str, *, name: str = "", **options: Any) -> str:
    """Registers a task on a dataset, in place of one registered under the same name before, and returns its name.

    Nothing is built, read or downloaded before the task is used.

    Args:
        dataset: "family/config", as "movielens/20m".
        task: a name of `user_llm.tasks.TASKS`.
        name: in SeqIO's registry; "" makes `user_llm_<family>_<config>_<task>`.
        options: of `TaskOptions`, as `history_length`, `data_dir`, `raw_path` or `vocabulary`.

    Raises:
        UserError: there is no such dataset, task or option.
    """
    if task not in TASKS.names:
        raise UserError(f"no task is called {task!r}: {_near(task, TASKS.names)}")
    if dataset not in dataset_names() and not re.fullmatch(r"custom/.+", dataset):
        raise UserError(f"no dataset is called {dataset!r}: {_near(dataset, dataset_names())}")
    known = [field.name for field in dataclasses.fields(TaskOptions)]
    for option in options:
        if option not in known:
            raise UserError(f"no option is called {option!r}: {_near(option, known)}")
    room = REVIEW_ROOM if TASKS[task].answers_reviews else {}
    chosen = TaskOptions(dataset, **{**room, **options})
    return _add(name or default_name(dataset, task), DatasetStudy(chosen), task, chosen.validation)


def default_name(dataset: str, task: str) -> str:
    """What a task on a dataset is called: "user_llm_movielens_20m_next_item"."""
    return re.sub(r"[^\w.:]", "_", f"user_llm_{dataset}_{task}")


def register_study(study: Study) -> list[str]:
    """Registers the tasks of an experiment, with its windows, prompts, answers and vocabulary; their names, in order.

    A name is that of dataset and task with a hash of all that defines the examples, so experiments never clash.
    """
    names = []
    for task in task_names(study.config):
        name = f"{default_name(study.config.data.dataset, task)}_{_hash(study.source(task, 'train'))}"
        names.append(_add(name, study, task, study.config.data.validation))
    return names


def _add(name: str, study: Study, task: str, validation: bool) -> str:
    splits = [split for split in SPLITS if split != "validation" or validation]
    seqio.TaskRegistry.remove(name)
    added = answered_task(
        name, TASKS[task], functools.partial(study.source, task), splits, vocabulary=lambda: study.vocabulary
    )
    seqio.TaskRegistry.add_provider(name, added)
    return name


def _hash(source: UserLLMSource) -> str:
    windows, prompts = source.windows, source.prompts
    told = (
        *(windows.table.fingerprint, windows.history_length, windows.min_history, windows.validation),
        *(prompts.wording, prompts.max_inputs, prompts.text_history, source.prompt_length, source.answer_width),
        source.vocabulary.digest,
    )
    return hashlib.sha256(repr(told).encode()).hexdigest()[:12]

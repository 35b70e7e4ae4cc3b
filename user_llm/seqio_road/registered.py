"""Importing this module registers a SeqIO task for every known dataset and every task that fits it, by name.

They are called `user_llm_<family>_<config>_<task>`, as `user_llm_movielens_20m_next_item`, and have the options that
`TaskOptions` says. Importing builds, reads and downloads nothing: that comes when a task is used.
`user_llm.seqio_road.tasks.register` registers more, with other options.
"""

from user_llm.builders.families import dataset_names
from user_llm.seqio_road.tasks import register
from user_llm.tasks import TASKS

_LACKS = {"movielens": ("review",)}  # what no dataset of a family has

NAMES = tuple(
    register(dataset, task.name)
    for dataset in dataset_names()
    for task in TASKS
    if not set(task.needs) & set(_LACKS.get(dataset.partition("/")[0], ()))
)
"""Of the tasks that this module has registered."""

"""The trie of a large catalogue, kept in a run's workdir: made once, and mapped from there whenever it is asked.

It follows from the catalogue and the vocabulary, which never change in a workdir.
"""

from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from user_llm.checksums import are_intact, checksums, read_intact, write_signed
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.experiment.workdir import TRIES
from user_llm.files import replacing
from user_llm.parallel.processes import lead_makes
from user_llm.tasks import TASKS
from user_llm.tasks.base import Study

MANY = 50_000
"""Names from which on a trie is kept; fewer make one in less time than it takes to open files."""

_FACTS, _VERSION = "facts.json", 1
_DELETE = "it is not used; delete its folder, and a run makes it anew"


class Run(Study, Protocol):
    """What is asked of an experiment (`Experiment`)."""

    workdir: Path


def keep_trie(run: Run, task: str) -> None:
    """Writes the trie of a task's answers, where it has many and they are not there yet."""
    names = TASKS[task].answer_names(run.names)
    if names is None or len(names.lengths) <= MANY:
        return
    folder = run.workdir / TRIES / task
    lead_makes(folder, lambda: save_trie(run.answer_trie(task), folder))


def save_trie(trie: CatalogueTrie, folder: Path) -> None:
    """Writes a trie, a file a column."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as partial:
        partial.mkdir()
        for name, column in trie.columns().items():
            np.save(partial / f"{name.replace('/', '-')}.npy", column)
        facts = {"version": _VERSION, "fan_out": trie.fan_out, "level_ends": trie.level_ends}
        write_signed(partial / _FACTS, {**facts, "files": checksums(partial)})


def open_trie(folder: Path) -> CatalogueTrie | None:
    """The trie in a folder, mapped from its files; None: there is none, or it is damaged, which is said."""
    facts = read_intact(folder / _FACTS, _DELETE)
    if facts is None or facts["version"] != _VERSION or not are_intact(folder, facts["files"], _DELETE):
        return None
    columns = {}
    for file in facts["files"]:
        # On a CPU the device's memory is the file's own.
        column = jax.device_put(np.load(folder / file, mmap_mode="r"), may_alias=True)
        columns[Path(file).stem.replace("-", "/")] = column
    return CatalogueTrie.of_columns(columns, tuple(facts["fan_out"]), tuple(facts["level_ends"]))

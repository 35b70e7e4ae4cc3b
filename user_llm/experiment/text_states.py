"""States of the texts of a run below the layers that read the user, kept in its workdir (`decoding/text_states.py`).

They are kept with a fingerprint of the weights and texts they were computed of: with others they are computed anew.
"""

import contextlib
import functools
import hashlib
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from tqdm import tqdm

from user_llm.checksums import are_intact, checksums, read_intact, write_signed
from user_llm.data.mixture import Mixture
from user_llm.data.pipeline import Source
from user_llm.data.sources import UserLLMSource
from user_llm.data.targets import SeveralTargets
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.text_states import TextStates, name_rows, read_texts
from user_llm.experiment.assembly import Assembly
from user_llm.files import replacing
from user_llm.models.model import Model
from user_llm.models.user_llm import UserLLM
from user_llm.parallel.processes import fetch, is_lead, lead_makes, lead_says
from user_llm.tasks import TASKS, Task
from user_llm.tasks.base import Study

FOLDER = "text_states"
_TABLE, _FACTS = "table.npy", "facts.json"
_DELETE = "it is not used; delete its folder, and a run makes it anew"

_logger = logging.getLogger(__name__)


class Run(Study, Protocol):
    """What is asked of an experiment (`Experiment`).

    Attributes:
      workdir: where the states are kept.
      tasks: of the run.
      assembly: its models.
    """

    workdir: Path

    @property
    def tasks(self) -> tuple[Task, ...]: ...

    @property
    def assembly(self) -> Assembly: ...


class KeptStates(NamedTuple):
    """The states of a task's prompt and names: `TextStates.table`, mapped from its file, and P."""

    table: np.ndarray
    prompt_length: int

    def on(self, mesh: Mesh) -> TextStates:
        """The states on all devices of a mesh."""
        whole, table = NamedSharding(mesh, PartitionSpec()), self.table
        return TextStates(jax.make_array_from_callback(table.shape, whole, table.__getitem__), self.prompt_length)


def make_states(run: Run, model: Model) -> None:
    """Computes the states of every task that lets itself be computed once, where they are not there yet.

    All processes of a run must call it. What is computed in every step all the same is said, with the reason.

    Args:
      model: of stage `user_llm`; what it trains is above its first layer.
    """
    if not run.config.integration.first_layer:
        return
    for task in run.tasks:
        if reason := _reason_against(run, task.name):
            _logger.info("%s: the states of its texts are computed in every step, as %s", task.name, reason)
            continue
        folder, fingerprint = run.workdir / FOLDER / task.name, _fingerprint(run, task.name, model)
        if not lead_says(functools.partial(_are_kept, folder, fingerprint)):
            _make(run, task.name, model, folder, fingerprint)
        lead_makes(folder / _FACTS, lambda: None)  # made by all together: the others wait until they see it


def open_states(run: Run, task: str, model: Model) -> KeptStates | None:
    """The states of a task, if the workdir has those of this model and these texts; `None` else."""
    if _reason_against(run, task):
        return None
    folder = run.workdir / FOLDER / task
    facts = _facts(folder, _fingerprint(run, task, model))
    if facts is None:
        return None
    table = np.load(folder / _TABLE, mmap_mode="r")
    return KeptStates(table.view(jnp.dtype(facts["dtype"])), facts["prompt_length"])


def _are_kept(folder: Path, fingerprint: str) -> bool:
    return _facts(folder, fingerprint) is not None


def _facts(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """What is known of the states in a folder, where they are there, of that fingerprint and undamaged."""
    facts = read_intact(folder / _FACTS, _DELETE)
    if facts is None:
        return None
    if facts["fingerprint"] != fingerprint:
        _logger.info("The states in %s are of other weights or texts", folder)
        return None
    return facts if are_intact(folder, {_TABLE: facts["table"]}, _DELETE) else None


class StatesSource:
    """A source of answered prompts whose batches bring `decoder_states`, float `[B, T, D]`: their texts' states.

    Args:
      source: of one task, or a mixture.
      kept: of each task.
      tries: of its names, for each task.
    """

    def __init__(self, source: UserLLMSource | Mixture, kept: list[KeptStates], tries: list[CatalogueTrie]):
        self._source, self._tables = source, [one.table for one in kept]
        self._rows = [
            name_rows(trie, one.prompt_length, source.length - 1) for one, trie in zip(kept, tries, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """What the source gives, and the states."""
        batch, tasks = self._source.gather(ids), np.zeros(len(ids), int)
        if isinstance(self._source, Mixture):
            tasks, _ = self._source.owners(ids)
        labels = batch["label/answer"]
        states = np.empty((*labels.shape, self._rows[0].shape[1], self._tables[0].shape[1]), self._tables[0].dtype)
        for task, (table, rows) in enumerate(zip(self._tables, self._rows, strict=True)):
            mine = tasks == task
            states[mine] = table[rows[labels[mine]]]
        texts = {"decoder_states": states}
        return {**batch, **texts, **(self._source.cut(texts) if isinstance(self._source, SeveralTargets) else {})}


def with_states(run: Run, model: Model, source: UserLLMSource | Mixture) -> Source:
    """`source`, whose batches bring their texts' states where the workdir has those of all its tasks."""
    names = [task.name for task in run.tasks]
    if not isinstance(source, Mixture):
        names = [name for name in names if source.prompts is run.prompts(name)]
    kept = [open_states(run, name, model) for name in names]
    if not all(kept):
        return source
    return StatesSource(source, cast(list[KeptStates], kept), [run.answer_trie(name) for name in names])


def _trains_below(config: ConfigDict) -> bool:
    """Whether something below `integration.first_layer` is trained."""
    return config.strategy == "full" or (
        config.strategy == "lora" and config.lora.first_layer < config.integration.first_layer
    )


def _reason_against(run: Run, task: str) -> str:
    """Why the states of a task's texts are not computed once; "" where they are."""
    config, asked = run.config, TASKS[task]
    if config.integration.kind != "cross_attention" or not config.integration.first_layer:
        return "every layer may read the user"
    if _trains_below(config):
        return f"strategy {config.strategy!r} trains layers below {config.integration.first_layer}"
    if config.data.text_history:
        return "each prompt has a history of its own"
    if asked.asks_about_label or asked.answer_names(run.names) is None:
        return "each of them is another"
    budget, size = config.integration.stored_gib * 2**30, _size(run, task)
    if size > budget:
        return f"they take {size / 2**30:.2f} GiB, above config.integration.stored_gib={config.integration.stored_gib}"
    return ""


def _size(run: Run, task: str) -> int:
    llm, prompt = run.assembly.language_model_config, run.prompts(task).length
    rows = prompt + len(run.answer_trie(task).tree.token)
    return rows * llm.width * jnp.dtype(llm.dtype).itemsize


def _make(run: Run, task: str, model: Model, folder: Path, fingerprint: str) -> None:
    prompt, trie = _prompt(run, task), run.answer_trie(task)
    rows = len(prompt) + len(trie.tree.token)
    parts = _parts(model, prompt, trie, run.config.integration.first_layer)
    llm = run.assembly.language_model_config
    width, dtype = llm.width, llm.dtype
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=rows, desc=f"{task}: states", disable=None if is_lead() else True))
        table = None
        if is_lead():
            shutil.rmtree(folder, ignore_errors=True)
            partial = stack.enter_context(replacing(folder))
            partial.mkdir()
            stored = f"u{jnp.dtype(dtype).itemsize}"  # as bits: NumPy's files know no bfloat16
            table = np.lib.format.open_memmap(partial / _TABLE, "w+", np.dtype(stored), (rows, width))
        start = 0
        for part in parts:
            if table is not None:
                table[start : start + len(part)] = part.view(table.dtype)
            start += len(part)
            bar.update(len(part))
        if table is not None:
            table.flush()
            facts = {"fingerprint": fingerprint, "dtype": dtype, "prompt_length": len(prompt)}
            write_signed(partial / _FACTS, {**facts, "table": checksums(partial, [_TABLE])[_TABLE]})
    _logger.info("%s: states of %d pieces of text are kept in %s", task, rows, folder)


def _parts(model: Model, prompt: np.ndarray, trie: CatalogueTrie, layer: int) -> Iterator[np.ndarray]:
    language_model = cast(UserLLM, model.module()).language_model
    for part in read_texts(language_model, prompt, trie, layer):
        yield fetch(part)


def _prompt(run: Run, task: str) -> np.ndarray:
    """int32 `[P]`: what every user is asked."""
    tokens, _, _ = run.prompts(task).build(np.zeros((1, 1), np.int32))
    return tokens[0]


def _fingerprint(run: Run, task: str, model: Model) -> str:
    """Of all that the states depend on: the texts, and the weights that read them."""
    layer, llm = run.config.integration.first_layer, run.assembly.language_model_config
    prompt, tree = _prompt(run, task), run.answer_trie(task).tree
    digest = hashlib.blake2b(repr((layer, llm)).encode())
    for column in (prompt, tree.token, tree.parent):
        digest.update(np.ascontiguousarray(column).data)
    read = np.union1d(prompt, np.asarray(tree.token))  # the rows of the table that these texts read
    for path in sorted(model.parameters):
        within = re.fullmatch(r"language_model/(embedding_VD|position_TD|layers/(?:(\d+)/)?.*)", path)
        if within is None or (within[2] and int(within[2]) >= layer) or "/lora/" in path:
            continue
        value = model.parameters[path]
        if path.endswith("/embedding_VD"):
            value = value[jnp.asarray(read)]
        elif path.startswith("language_model/layers/") and not within[2]:
            value = value[:layer]  # layers that are scanned lie in one array
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(fetch(value)).view(np.uint8).data)
    return digest.hexdigest()

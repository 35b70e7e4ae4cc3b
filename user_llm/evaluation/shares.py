"""What each process reads and ranks of an evaluation, and how the answers of all come together."""

import json
import logging
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from user_llm.data.pipeline import Source, evaluation_batches
from user_llm.evaluation.scores import Array
from user_llm.parallel.mesh import local_rows, own_rows
from user_llm.parallel.processes import all_say, end_if_preempted, is_lead

_logger = logging.getLogger(__name__)


class Share:
    """This process' part of some examples: of every batch the rows that its devices hold, as in training.

    So a device has the same rows, in the same shapes, as where one process has all of the devices.

    Args:
      count: n, the examples.
      batch_size: rows of a batch of all processes together.
      mesh: the devices of all processes, which then must do the same with their shares; None: this process reads all.

    Attributes:
      ids: int64 `[m]`, the numbers of the examples that are this process' own, ascending.
    """

    def __init__(self, count: int, batch_size: int, mesh: Mesh | None = None):
        self._count, self._batch_size, self._mesh = count, batch_size, mesh
        owners = [] if mesh is None else sorted({device.process_index for device in mesh.devices.flat})
        rows, mine = [np.arange(batch_size)], 0
        if mesh is not None and len(owners) > 1:
            rows, mine = [local_rows(mesh, batch_size, owner) for owner in owners], owners.index(jax.process_index())
        starts = np.arange(0, count, batch_size)[:, None]
        everybodys = [(starts + some).ravel() for some in rows]
        self._everybodys = [ids[ids < count] for ids in everybodys]
        self._rows, self.ids = rows[mine], self._everybodys[mine]

    def batches(self, source: Source, description: str) -> Iterable[tuple[dict[str, np.ndarray], np.ndarray]]:
        """The rows of this process of all batches of `source` `[n]`, with the mask of the real ones; under a bar.

        As many batches for every process: some may have no real row.
        """
        _logger.debug("%s: %d examples", description, self._count)
        disable = None if is_lead() else True  # None: where there is no terminal
        with tqdm(total=len(self.ids), desc=description, unit="user", dynamic_ncols=True, disable=disable) as bar:
            for batch in evaluation_batches(source, self._batch_size, self._rows):
                end_if_preempted()
                real = batch["weight"] > 0
                yield batch, real
                bar.update(int(real.sum()))

    def own(self, values: Array) -> Array:
        """This process' rows of what a model has answered to such a batch."""
        return values if self._mesh is None else own_rows(values, self._mesh)

    def whole(self, column: np.ndarray) -> np.ndarray:
        """A column `[n, …]` of all examples, of which this process has brought `[m, …]`. All processes must call it."""
        if self._has_all():
            return column
        whole = np.empty((self._count, *column.shape[1:]), column.dtype)
        for ids, part in zip(self._everybodys, all_say(np.ascontiguousarray(column).tobytes()), strict=True):
            whole[ids] = np.frombuffer(part, column.dtype).reshape(len(ids), *column.shape[1:])
        return whole

    def whole_texts(self, texts: Sequence[str]) -> list[str]:
        """As `whole`, of texts."""
        if self._has_all():
            return list(texts)
        whole = np.empty(self._count, object)
        for ids, part in zip(self._everybodys, all_say(json.dumps(list(texts)).encode()), strict=True):
            whole[ids] = json.loads(part)
        return whole.tolist()

    def _has_all(self) -> bool:
        return all(len(ids) == self._count for ids in self._everybodys)

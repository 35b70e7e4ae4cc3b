"""How a finished run is asked: what is compiled for it is compiled once, for as many users as fit, whoever they are."""

import threading
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from user_llm.models.model import Model
from user_llm.tasks import TASKS, Asker, Study
from user_llm.tasks.extra_items import Extensions
from user_llm.tasks.only_items import OnlyItems

BATCHES = (1, 8, 32, 64)
"""Users at once: as many rows as the next of these, so that each is compiled for once."""

_KEPT, _WITH_TRIES = 32, 4  # askers, and those of them that hold a trie of their own
_CLOSED = 64  # width of what is excluded, times 1, 2, 4, …


class Askers:
    """Ways to ask a run, each made once; threads may share them.

    Args:
      study: of the run.
      stages: its models.
    """

    def __init__(self, study: Study, stages: Mapping[str, Model]):
        self._stages = stages
        self._made: OrderedDict[tuple, Asker] = OrderedDict()
        self._extensions = Extensions(study)
        self._lock = threading.Lock()

    def get(
        self, task: str, k: int, answers: str | None, extra: tuple[str, ...] = (), allowed: np.ndarray | None = None
    ) -> Asker:
        """Of the `k` best answers.

        Args:
          answers: in which way; None: the task's own.
          extra: titles that came after the training.
          allowed: bool `[I+1]`, with the extra titles behind the catalogue's, what may be answered; None: all.
        """
        key = task, k, answers, extra, None if allowed is None else np.packbits(allowed).tobytes()
        with self._lock:
            if key not in self._made:
                self._made[key] = self._make(task, k, answers, extra, allowed)
                own = [made for made in self._made if made[3:] != ((), None)]
                for old in [*own[:-_WITH_TRIES], *list(self._made)[:-_KEPT]]:
                    del self._made[old]
            self._made.move_to_end(key)
            return self._made[key]

    def _make(self, task: str, k: int, answers: str | None, extra: tuple[str, ...], allowed: np.ndarray | None):
        study = self._extensions.of(extra)
        if allowed is not None:
            items = len(study.answer_trie(task).title_of_item)  # a trie may have room for more
            study = OnlyItems(study, task, np.pad(allowed, (0, items - len(allowed))))
        if answers is None:
            return TASKS[task].asker(study, self._stages["user_llm"], k)
        return TASKS[task].asker_by(answers, study, self._stages, k)


def filled(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A batch with as many rows as the next of `BATCHES`.

    Raises:
      ValueError: it has more than the last of them.
    """
    count = len(next(iter(batch.values())))
    if count > BATCHES[-1]:
        raise ValueError(f"{count} users at once: at most {BATCHES[-1]}")
    missing = next(size for size in BATCHES if size >= count) - count
    return {name: np.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1))) for name, x in batch.items()}


def beside(items: np.ndarray, closed: list[list[int]]) -> np.ndarray:
    """Items int32 `[B, S]` with more in each row behind them, 0-padded to one of few widths."""
    longest, width = max(map(len, closed)), _CLOSED
    while width < longest:
        width *= 2
    more = np.zeros((len(items), width), np.int32)
    for row, ids in zip(more, closed, strict=True):
        row[: len(ids)] = ids
    return np.concatenate([items, more], axis=1)

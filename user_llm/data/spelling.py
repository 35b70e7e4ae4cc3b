"""Items to spell: what a language model learns of a catalogue before it learns of users."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from user_llm.data.sources import UserLLMSource, answered_batch


class Spelling:
    """Every item once, with the task's prompt, and its title as the answer.

    A batch has `label/item`, int32 [B], which item; and what a model reads of texts (`answered_batch`).

    Args:
        texts: whose prompts and answers are used; prompts without a history.
        items: int [n], which items.
    """

    def __init__(self, texts: UserLLMSource, items: np.ndarray):
        self._texts, self._items = texts, items.astype(np.int32)

    def __len__(self) -> int:
        return len(self._items)

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The batch of the items number `ids` [B]."""
        items = self._items[ids]
        asked = {"history/item": np.zeros((len(items), 1), np.int32), "label/item": items}
        asked["label/rating"] = np.zeros_like(items)
        return {"label/item": items, **answered_batch(self._texts.sequences(asked, np.zeros(len(items), np.int64)))}


class OneAfterTheOther:
    """The batches of one stream for some steps, then those of another from its beginning.

    Args:
        first, then: as `training.loop.Batches`.
        steps: how many of the first.
    """

    def __init__(self, first: Any, then: Any, steps: int):
        self._first, self._then, self._steps = first, then, steps

    def iterator(self, start_step: int = 0, *, threads: int, prefetch: int) -> Iterator[dict[str, np.ndarray]]:
        """This process' rows of the batches from `start_step` on."""
        options = dict(threads=threads, prefetch=prefetch)
        if start_step < self._steps:
            yield from itertools.islice(self._first.iterator(start_step, **options), self._steps - start_step)
        yield from self._then.iterator(max(0, start_step - self._steps), **options)

    def whole_batch(self, step: int) -> dict[str, np.ndarray]:
        """All rows of the batch at a step."""
        return self._first.whole_batch(step) if step < self._steps else self._then.whole_batch(step - self._steps)

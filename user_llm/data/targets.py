"""Windows that teach the titles of several events: one pass of a causal encoder over a history serves all of them."""

from collections.abc import Mapping

import numpy as np

from user_llm.data.answers import Answers
from user_llm.data.prompts import Prompts
from user_llm.data.sources import UserLLMSource, answered_batch
from user_llm.data.windows import Windows

FIRST = "first/"
"""Of names in a batch: texts that are learnt up to the first token of their answer."""


class SeveralTargets(UserLLMSource):
    """Windows with a prompt and an answer for each of their newest events.

    A batch is that of `UserLLMSource`, but what it has of texts is [B, K, …]: text k asks for the event behind slot
    S - K + k of the history, which is all it may read. `target/item`, int32 [B, K], is that event's item, 0 where the
    history does not go back so far: such a text has no answer.

    Args:
        windows: whose stride is K, if each event is to be learnt once.
        prompts: without a history in words.
        answers: names of items.
        targets: K.
        whole_every: n, which divides K. Every n-th text has its whole title, [B, K / n, …], the newest among them. Of
            the others the first token alone is learnt: what the decoder reads and learns of them stands by itself, no
            longer than the prompts, in `first/decoder_…` [B, K - K / n, P].
    """

    def __init__(self, windows: Windows, prompts: Prompts, answers: Answers, targets: int, whole_every: int = 1):
        super().__init__(windows, prompts, answers)
        self.targets = targets
        self.whole_every = whole_every

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """A batch of the windows `ids` [B]."""
        batch = self.windows.gather(ids)
        history, count = batch["history/item"], self.targets
        following = np.concatenate([history[:, 1:], batch["label/item"][:, None]], axis=1)
        items = np.where(history > 0, following, 0)[:, -count:]
        each = {"history/item": np.zeros((items.size, 1), np.int32), "label/item": items.reshape(-1)}
        each["label/rating"] = np.zeros_like(each["label/item"])
        texts = answered_batch(self.sequences(each, np.zeros(items.size, np.int64)))
        texts = {name: values.reshape(len(items), count, *values.shape[1:]) for name, values in texts.items()}
        return {**batch, "target/item": items, **texts, **self.cut(texts)}

    def newest(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A batch with the texts of its windows' labels alone, as `UserLLMSource` has it."""
        of_windows = self.windows.gather(np.zeros(0, np.int64))
        whole = {name: values for name, values in batch.items() if not name.startswith(FIRST)}
        return {name: values if name in of_windows else values[:, -1] for name, values in whole.items()}

    def cut(self, texts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the decoder reads [B, K, T], of the texts with whole titles, and of the others up to the first token."""
        if self.whole_every == 1:
            return {}
        whole = np.arange(1, self.targets + 1) % self.whole_every == 0
        decoder = {name: values for name, values in texts.items() if name.startswith("decoder_")}
        cut = {name: values[:, whole] for name, values in decoder.items()}
        return {**cut, **{FIRST + name: values[:, ~whole, : self.prompt_length] for name, values in decoder.items()}}

"""Batches whose texts stand in two groups, the short ones and the long ones: less padding is computed.

A batch's rows are sorted by how far their text reaches. The short ones are cut to a width that is the same for all
batches, so that there is one program for them; the rare batch that does not fit is left as it is, and has a program of
its own. Two groups, as each is another language model to compile: four leave a twentieth less to compute, and take
three times the compilation.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

Batch = dict[str, np.ndarray]

_SAMPLE = 1024  # rows whose lengths are looked at
_SURE = 4.5  # standard deviations: less than one batch in 100,000 does not fit
_WORTH = 0.9  # share of the positions that must be left at most
_OF_TEXT = (
    "decoder_input_tokens",
    "decoder_positions",
    "decoder_target_tokens",
    "decoder_loss_weights",
    "decoder_states",  # where they are kept
)


class Batches(Protocol):
    """See `training.loop.Batches`."""

    def iterator(self, start_step: int = 0, *, threads: int, prefetch: int) -> Iterator[Batch]: ...

    def whole_batch(self, step: int) -> Batch: ...


class Cut(NamedTuple):
    """Of `short + long` rows, `short` have a text of at most `width` tokens."""

    short: int
    long: int
    width: int


class ByLength:
    """The same batches with rows in another order, and their texts in groups.

    `texts` is a pair of dictionaries, of the short rows and of the long ones: what the decoder reads [B, T] of them,
    the short rows' as wide as the cut says, and their prompt_lengths where the batch has such. The other arrays stay
    whole. Rows are dealt to the groups by turns (`models.sharding.deal`), so that devices that cut the batch cut both.

    Args:
        batches: of texts padded on the right.
        cut: in lowest terms.
    """

    def __init__(self, batches: Batches, cut: Cut):
        self._batches = batches
        self.cut = cut

    def iterator(self, start_step: int = 0, *, threads: int, prefetch: int) -> Iterator[Batch]:
        """The batches from `start_step` on, which depend on the step alone."""
        return map(self.group, self._batches.iterator(start_step, threads=threads, prefetch=prefetch))

    def whole_batch(self, step: int) -> Batch:
        """The batch at a step as it is, without groups."""
        return self._batches.whole_batch(step)

    def group(self, batch: Batch) -> Batch:
        """A batch in groups, or as it is where too few of its texts are short."""
        short, long, width = self.cut
        lengths = text_lengths(batch)
        turns = np.argsort(lengths, kind="stable").reshape(short + long, -1).T
        groups = turns[:, :short].ravel(), turns[:, short:].ravel()
        if lengths[groups[0]].max() > width:
            return batch
        texts = tuple(
            {name: batch[name][rows, :most] for name in _OF_TEXT if name in batch}
            | {name: batch[name][rows] for name in ("prompt_lengths",) if name in batch}
            for rows, most in zip(groups, (width, None), strict=True)
        )
        whole = {name: values[turns.ravel()] for name, values in batch.items() if name not in _OF_TEXT}
        return {**whole, "texts": texts}  # type: ignore[dict-item]


def by_length(batches: Batches, shards: int) -> Batches:
    """`batches` of texts in groups, where that spares a tenth of their positions or more; else as they are.

    Args:
        shards: devices that cut a batch. Each must have as many rows of a group as any other.
    """
    first = batches.whole_batch(0)
    size, most = first["decoder_input_tokens"].shape
    sample = [text_lengths(batches.whole_batch(step)) for step in range(1, -(-_SAMPLE // size))]
    lengths = np.sort(np.concatenate([text_lengths(first), *sample]))
    best, left = None, _WORTH
    for short, long in ((1, 1), (3, 1), (1, 3)):
        share = short / (short + long)
        # How far a batch strays from the share of short texts is known.
        safe = share + _SURE * np.sqrt(share * (1 - share) / size)
        if size % ((short + long) * shards) or safe >= 1:
            continue
        width = max(1, int(lengths[int(safe * len(lengths))]))
        if (now := share * width / most + 1 - share) <= left:
            best, left = Cut(short, long, width), now
    return batches if best is None else ByLength(batches, best)


def text_lengths(batch: Batch) -> np.ndarray:
    """int [B]: how far each text must be read, up to its last target. What is behind says nothing to a causal model."""
    learnt = batch["decoder_loss_weights"] > 0
    return np.where(learnt.any(axis=1), learnt.shape[1] - np.argmax(learnt[:, ::-1], axis=1), 0)

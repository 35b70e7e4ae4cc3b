"""The catalogue and the encoder as teachers of every token of an answer.

A label says which of a title's tokens came, once. The encoder says of every title how likely it is, and so, summed over
the titles below, of every token that may follow a prefix of the label: the language model learns from all of them.
The catalogue says which tokens may follow at all.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.paths import nodes_above
from user_llm.decoding.prior import DensePrior, of_items_left
from user_llm.models import attention
from user_llm.models.sharding import deal

Part = tuple[jax.Array, jax.Array, jax.Array]
"""Hidden states [b, A, D] of a group of texts, their targets and weights [b, A]."""


_WIDE_LEVELS = 3  # the root, and titles' first and second words: each has a width of its own, all below share one


class SoftTargets(NamedTuple):
    """What may stand at the positions from `start` on, if it is real, bool [b, A', C], and how likely, float.

    `tokens` are int [b, A', C], or [1, 1, C] where they are those of all texts.
    """

    start: int
    tokens: jax.Array
    real: jax.Array
    shares: jax.Array


class Teacher:
    """Soft targets along the title of each label.

    Args:
      trie: of the titles.
      share: of the encoder's distribution in the targets; the rest is the label's.
      dropped: bool [I + 1], items that the encoder has learnt nothing of; None: none.
      learns: whether the encoder moves while it teaches.
      within_catalogue: whether a token is weighed against those that go on with a title, not against all.
    """

    def __init__(
        self,
        trie: CatalogueTrie,
        share: float,
        dropped: np.ndarray | None = None,
        learns: bool = True,
        within_catalogue: bool = False,
    ):
        self._trie = trie if dropped is None else trie.only(~dropped)
        self.share, self.dropped, self.learns = share, dropped, learns
        self.within_catalogue = within_catalogue

    def of_labels(self, labels: jax.Array) -> "Taught | None":
        """What it says of texts for `labels` int [b] without the encoder; None: nothing."""
        return Taught(self, None, labels, jnp.zeros(labels.shape, bool)) if self.within_catalogue else None

    def targets(self, logits: jax.Array | None, labels: jax.Array, taught: jax.Array) -> list[SoftTargets]:
        """Soft targets of texts whose answers are the titles of `labels` int [b].

        The root and the levels below it, which branch far less, stand apart: each is as wide as it must be.

        Args:
          logits: float [b, I + 1], the encoder's; None: it says nothing.
          taught: bool [b]; else the label is the whole target.
        """
        trie, masses = self._trie, None
        if logits is not None:
            log_prior = of_items_left(trie, jax.nn.log_softmax(logits.at[:, 0].set(-jnp.inf), axis=-1))
            masses = DensePrior.build(trie, log_prior).masses
        paths = nodes_above(trie, trie.title_of_item[labels])
        bounds = [*range(min(_WIDE_LEVELS, paths.shape[1])), paths.shape[1]]
        return [self._level(masses, paths, taught, *span) for span in itertools.pairwise(bounds)]

    def _level(
        self, masses: jax.Array | None, paths: jax.Array, taught: jax.Array, start: int, end: int
    ) -> SoftTargets:
        trie, nodes = self._trie, paths[:, start:end]
        width = max(trie.fan_out[start:end])
        children, real = trie.children(nodes if start else jnp.zeros((1, 1), int), width)  # all texts begin at the root
        real = real & (nodes >= 0)[..., None]
        if masses is None:
            return SoftTargets(start, trie.token[children], real, jnp.zeros(real.shape))
        rows = jnp.arange(len(nodes))[:, None, None]
        shares = jax.nn.softmax(jnp.where(real, masses[children, rows], attention.MASKED), axis=-1) * real
        return SoftTargets(start, trie.token[children], real, self.share * taught[:, None, None] * shares)


class Taught(NamedTuple):
    """What a teacher says of a batch's texts.

    Attributes:
      teacher: who says it.
      logits: float [b, I + 1], the encoder's; None: it says nothing.
      labels: int [b].
      rows: bool [b], which texts are taught; the others learn their label alone.
    """

    teacher: Teacher
    logits: jax.Array | None
    labels: jax.Array
    rows: jax.Array

    def cross_entropy(
        self, parts: Sequence[Part], sizes: Sequence[int], table: jax.Array, **options: Any
    ) -> tuple[jax.Array, jax.Array]:
        """The sums of losses and of weights of groups of texts, to which rows are dealt (`sharding.deal`)."""
        loss = weight = jnp.zeros(())
        logits = [None] * len(sizes) if self.logits is None else deal(self.logits, sizes)
        of_groups = zip(logits, deal(self.labels, sizes), deal(self.rows, sizes), strict=True)
        options["within_catalogue"] = self.teacher.within_catalogue
        for part, group in zip(parts, of_groups, strict=True):
            for soft in self.teacher.targets(*group):
                if soft.start < part[0].shape[1]:
                    loss += taught_cross_entropy(*part[:1], table, *part[1:], soft, **options)
            weight += part[2].sum()
        return loss, weight


def taught_cross_entropy(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    soft: SoftTargets,
    *,
    chunk_rows: int,
    softcap: float | None = None,
    within_catalogue: bool = False,
) -> jax.Array:
    """The sum of weights times the cross-entropy against soft targets, and against the label with what these leave.

    Args:
      hidden: float [b, A, D]; positions from `soft.start` on, as many as it has, are read.
      table: float [V, D].
      targets: int [b, A], the labels' tokens.
      weights: float [b, A].
      chunk_rows: most rows whose logits exist at once.
      within_catalogue: see `Teacher`. Where nothing is real there has to be no weight.
    """
    end = min(soft.start + soft.real.shape[1], hidden.shape[1])
    shared, wide = soft.tokens.shape[:2] == (1, 1), soft.tokens.shape[2] * table.shape[1] > table.shape[0]
    parts = [x[:, soft.start : end] for x in (hidden, targets, weights)]
    parts += [x[:, : end - soft.start] for x in (soft.real, soft.shares, *(() if shared else (soft.tokens,)))]
    rows = [x.reshape(-1, *x.shape[2:]) for x in parts]
    padding = -len(rows[0]) % chunk_rows
    chunks = [jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))).reshape(-1, chunk_rows, *x.shape[1:]) for x in rows]
    table = table.astype(hidden.dtype)

    def logits(hidden: jax.Array, vectors: jax.Array) -> jax.Array:
        """Of hidden [r, D] for vectors [C, D], the same for all rows, or [r, C, D]."""
        terms = "ru,vu->rv" if vectors.ndim == 2 else "ru,rvu->rv"
        found = jnp.einsum(terms, hidden, vectors, preferred_element_type=jnp.float32)
        return found if softcap is None else attention.softcap(found, softcap)

    @jax.checkpoint
    def loss(chunk: list[jax.Array]) -> jax.Array:
        hidden, target, weight, real, shares = chunk[:5]
        tokens = soft.tokens[0, 0] if shared else chunk[5]
        if within_catalogue and (shared or not wide):  # no other logits are asked for
            following, own = logits(hidden, table[tokens]), logits(hidden, table[target[:, None]])[:, 0]
        else:
            every = logits(hidden, table)
            following = every[:, tokens] if shared else jnp.take_along_axis(every, tokens, axis=1)
            own = jnp.take_along_axis(every, target[:, None], axis=1)[:, 0]
        rivals = jnp.where(real, following, attention.MASKED) if within_catalogue else every
        others = jnp.sum(following * shares, axis=1)
        left = 1 - shares.sum(axis=1)
        return jnp.sum(weight * (jax.nn.logsumexp(rivals, axis=1) - left * own - others))

    return jax.lax.map(loss, chunks).sum()

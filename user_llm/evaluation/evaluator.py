"""Ranks of the test labels under every row of the results table, over the same windows and the whole catalogue.

Of several processes each reads and ranks its `Share`, and what they found is gathered once, behind the last batch: in
the order of one process, so that metrics and predictions need not know of hosts.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from user_llm.data.pipeline import Source, evaluation_batches
from user_llm.data.vocabularies import Vocabulary
from user_llm.decoding.beam import BeamResult, beam_search
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.generate import generate
from user_llm.decoding.prior import build_prior
from user_llm.decoding.ranking import rank_catalogue
from user_llm.decoding.text_states import TextStates
from user_llm.evaluation.fusion import LogPrior
from user_llm.evaluation.metrics import ranks_from_titles, refuse_nan
from user_llm.evaluation.ranks import rank_labels
from user_llm.evaluation.scores import ItemScores, Scores
from user_llm.evaluation.shares import Share
from user_llm.evaluation.users import context_of, inputs_of
from user_llm.models.model import Model
from user_llm.models.user_llm import UserLLM
from user_llm.parallel.mesh import local_rows, put_batch
from user_llm.training.objectives import Objective

AnySource = TypeVar("AnySource", bound=Source)
Beams = Callable[[Mapping[str, np.ndarray]], tuple[BeamResult, np.ndarray]]
TitleReader = Callable[[np.ndarray], np.ndarray]


def rank_by_scores(
    scores: Scores,
    source: Source,
    *,
    batch_size: int,
    exclude_seen: bool,
    mesh: Mesh | None = None,
    label: str = "label/item",
    description: str = "ranking",
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks float64 `[n]` of the labels of all windows in `source` by `scores`, and the `TOP` items `[n, TOP]`.

    A batch is ranked in blocks of items (`ranks.rank_labels`). `label` is the batch's entry with the right answers.
    Where these are not items (but categories, from `label/answer`), nothing can be excluded.

    Args:
      exclude_seen: whether items that the user has met are no answer: those of `seen/item` where the batch has it, else
        of the history.
      mesh: see `Share`; `scores` may lie on it, or on devices of this process.

    Raises:
      UserError: a score is NaN.
    """
    share = Share(len(source), batch_size, mesh)
    ranks, items = [], []
    for batch, real in share.batches(source, description):
        own = _of_share(scores(batch), share)
        found = rank_labels(own, batch[label], seen_items(batch) if exclude_seen else None)
        found_ranks, found_items, unordered = (np.asarray(x)[real] for x in found)
        ranks.append(np.where(unordered, np.nan, found_ranks))
        items.append(found_items)
    return _of_all(share, ranks, items)


def _of_share(scores: ItemScores, share: Share) -> ItemScores:
    return ItemScores(scores.width, lambda first, count: share.own(scores.block(first, count)))


def _of_all(share: Share, ranks: list[np.ndarray], items: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What all processes have found; all refuse what one would."""
    whole = share.whole(np.concatenate(ranks))
    refuse_nan(np.isnan(whole))
    return whole, share.whole(np.concatenate(items))


def rank_by_beams(
    beams: Beams,
    source: Source,
    *,
    trie: CatalogueTrie,
    batch_size: int,
    description: str,
    mesh: Mesh | None = None,
    read: TitleReader | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks `[n]` (inf: none of the beams that came back is the label) and the items `[n, K]` of the beams, best first.

    Items whose titles have the same tokens are one hypothesis, which counts as many of them as may be answered: the
    ranks are those of `rank_by_scores` as far as the beams reach.

    Args:
      beams: batch → (`BeamResult`, the items `[B, S]` that are no answer, 0-padded; a label is one all the same).
      mesh: see `Share`; the beams may lie on it, or on devices of this process.
      read: for free beams, which come without items: tokens `[B, K, T]` → item ids `[B, K]`, 0 = no title.

    Raises:
      UserError: a score is NaN.
    """
    share = Share(len(source), batch_size, mesh)
    canonical = np.asarray(trie.canonical_item)
    ranks, items = [], []
    for batch, real in share.batches(source, description):
        result, excluded = beams(batch)
        tokens, scores, found = (np.asarray(share.own(x)) for x in result)
        labels = batch["label/item"]
        excluded = _but(excluded, labels)
        if read is not None:
            found = _once(np.asarray(trie.open_items(read(tokens), excluded)))
        counts = _open_counts(trie, found, excluded)
        ranks.append(ranks_from_titles(canonical[found], scores, counts, canonical[labels])[real])
        items.append(np.take_along_axis(found, np.argsort(found == 0, axis=1, kind="stable"), axis=1)[real])
    return _of_all(share, ranks, items)


def _once(items: np.ndarray) -> np.ndarray:
    """Items `[B, J]`, 0 where one stands further left: free beams may spell a title in several ways."""
    again = np.tril(items[:, :, None] == items[:, None, :], k=-1).any(axis=2)
    return np.where(again, 0, items)


def _open_counts(trie: CatalogueTrie, items: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """How many items of the titles of `items` `[B, J]` are not `excluded` `[B, S]`: int `[B, J]`, 0 of item 0."""
    canonical, group_size = np.asarray(trie.canonical_item), np.asarray(trie.group_size)
    excluded = np.sort(excluded, axis=1)
    excluded[:, 1:][excluded[:, 1:] == excluded[:, :-1]] = 0  # a history may hold an item twice
    closed = (canonical[items][:, :, None] == canonical[excluded][:, None, :]).sum(axis=2)
    return np.where(items > 0, group_size[items] - closed, 0)


def seen_items(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Items `[n, E]` that the users have met: all of them where the batch brings them, else those of the history."""
    return batch.get("seen/item", batch["history/item"])


def _but(seen: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Items `[n, E]` that are no answer: what is seen, but never the label, to which a user may come back."""
    return np.where(seen == labels[:, None], 0, seen)


_BEAM_OPTIONS = ("num_beams", "max_steps", "num_best", "eos_id", "within_catalogue", "constrained", "with_context")


@functools.partial(jax.jit, static_argnames=_BEAM_OPTIONS)
def _beams(
    model: Model,
    trie: CatalogueTrie,
    batch,
    excluded,
    states,
    log_prior,
    weight,
    *,
    constrained: bool,
    with_context: bool,
    **options,
):
    llm = cast(UserLLM, model.module())
    return beam_search(
        llm,
        batch["prompt_tokens"],
        batch["prompt_lengths"],
        context_of(llm, batch) if with_context else None,
        trie=trie if constrained else None,
        excluded_items=excluded["item"] if constrained else None,
        states=states if constrained else None,
        prior=None if log_prior is None else build_prior(trie, log_prior, excluded["item"]),
        weight=weight,
        **options,
    )


def user_llm_beams(
    model: Model,
    *,
    trie: CatalogueTrie,
    constrained: bool = True,
    eos_id: int,
    num_beams: int,
    max_steps: int,
    exclude_seen: bool,
    with_context: bool = True,
    states: TextStates | None = None,
    prior: LogPrior | None = None,
    weight: float = 1.0,
    num_best: int | None = None,
    within_catalogue: bool = False,
) -> Beams:
    """Beams of the contextualised LLM, or with `with_context=False` of its LLM alone, on the prompt and no user.

    `constrained` beams answer titles of the catalogue and nothing else; `states` (see `beam_search`) speed them up.
    A `prior` is a second opinion on the items, which counts `1 - weight`; it needs constrained beams.
    Where the best `num_best` are all that is asked for, the search ends with them.
    `within_catalogue`: see `beam_search`.
    """
    options = dict(num_beams=num_beams, max_steps=max_steps, num_best=num_best, eos_id=eos_id)
    options |= dict(within_catalogue=within_catalogue, constrained=constrained, with_context=with_context)

    def beams(batch: Mapping[str, np.ndarray]) -> tuple[BeamResult, np.ndarray]:
        seen = seen_items(batch)
        excluded = np.zeros_like(seen)
        if exclude_seen:
            # A user to recommend to has no label.
            excluded = _but(seen, batch.get("label/item", np.zeros(len(seen), np.int32)))
        inputs, closed = (put_batch(part, model.mesh) for part in (inputs_of(batch), {"item": excluded}))
        log_prior = None if prior is None else prior(batch, closed["item"])
        return _beams(model, trie, inputs, closed, states, log_prior, jnp.float32(weight), **options), excluded

    return beams


@functools.partial(jax.jit, static_argnames=("with_context", "eos_id", "within_catalogue"))
def _catalogue_scores(model: Model, trie: CatalogueTrie, batch, states, *, with_context: bool, **options):
    llm = cast(UserLLM, model.module())
    context = context_of(llm, batch) if with_context else None
    prompt = batch["prompt_tokens"], batch["prompt_lengths"]
    return rank_catalogue(llm, *prompt, context, trie, states=states, **options)


def user_llm_scores(
    model: Model,
    *,
    trie: CatalogueTrie,
    eos_id: int,
    with_context: bool = True,
    states: TextStates | None = None,
    within_catalogue: bool = False,
) -> Scores:
    """Log-probability of every name of the trie: exact, and affordable for categories and small catalogues.

    `states` (see `rank_catalogue`) speed it up. `within_catalogue`: see `beam_search`.
    """
    options = dict(eos_id=eos_id, with_context=with_context, within_catalogue=within_catalogue)
    return lambda batch: ItemScores.dense(
        _catalogue_scores(model, trie, put_batch(inputs_of(batch), model.mesh), states, **options)
    )


@functools.partial(jax.jit, static_argnames=("eos_id", "max_new_tokens", "with_context"))
def _texts(model: Model, batch, *, eos_id: int, max_new_tokens: int, with_context: bool):
    llm = cast(UserLLM, model.module())
    context = context_of(llm, batch) if with_context else None
    prompt = batch["prompt_tokens"], batch["prompt_lengths"]
    return generate(llm, *prompt, context, max_new_tokens=max_new_tokens, eos_id=eos_id)


def user_llm_texts(
    model: Model, *, eos_id: int, max_new_tokens: int, with_context: bool = True
) -> Callable[[Mapping[str, np.ndarray]], jax.Array]:
    """Returns `batch -> int32 [B, max_new_tokens]`: what the contextualised LLM writes, greedily, up to EOS."""
    options = dict(eos_id=eos_id, max_new_tokens=max_new_tokens, with_context=with_context)
    return lambda batch: _texts(model, put_batch(inputs_of(batch), model.mesh), **options)


def write_texts(
    texts: Callable[[Mapping[str, np.ndarray]], jax.Array],
    source: Source,
    vocabulary: Vocabulary,
    *,
    batch_size: int,
    description: str,
    mesh: Mesh | None = None,
) -> list[str]:
    """The texts `[n]` that `texts(batch) -> tokens` writes for all windows in `source`, without outer spaces.

    Args:
      mesh: see `Share`; the tokens may lie on it, or on devices of this process.
    """
    share = Share(len(source), batch_size, mesh)
    found: list[str] = []
    for batch, real in share.batches(source, description):
        found += vocabulary.decode_batch(np.asarray(share.own(texts(batch)))[real])
    return share.whole_texts([text.strip() for text in found])


class Subset(Generic[AnySource]):
    """Some examples of a source, in the order of `ids`."""

    def __init__(self, source: AnySource, ids: np.ndarray):
        self.source, self.ids = source, ids

    @classmethod
    def evenly(cls, source: AnySource, most: int) -> "Subset[AnySource]":
        """At most `most` examples, evenly spread over the source; 0 takes all."""
        count = min(most or len(source), len(source))
        return cls(source, np.linspace(0, len(source) - 1, count).astype(np.int64))

    def __len__(self) -> int:
        return len(self.ids)

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The examples number `ids` of the subset."""
        return self.source.gather(self.ids[ids])


class ShuffledContexts:
    """A source of the same windows, each read with another user's history as the context.

    A fixed rotation, so nobody keeps their own: what the LLM still gets right, it knows without the user.
    """

    def __init__(self, source: Source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The windows `ids`, with `context/item` and `context/rating` of other users."""
        batch = self._source.gather(ids)
        other = self._source.gather((ids + max(1, len(self) // 2)) % len(self))
        contexts = {name.replace("history", "context"): other[name] for name in other if name.startswith("history/")}
        return {**batch, **contexts}


def mean_metrics(objective: Objective, source: Source, batch_size: int) -> Callable[[Model], dict[str, float]]:
    """Returns `model -> {metric: mean over source}` for a training objective: a validation loss.

    Args:
      objective: what arrays it holds lie where the model does.
    """

    @jax.jit
    def apply(objective: Objective, model: Model, batch):
        _, _, metrics = objective(model.module(), batch, None)
        return metrics

    def evaluate(model: Model) -> dict[str, float]:
        totals: dict[str, jax.Array] = {}
        for batch in evaluation_batches(source, batch_size, local_rows(model.mesh, batch_size)):
            metrics = apply(objective, model, put_batch(batch, model.mesh))
            jax.block_until_ready(metrics)  # CPU meshes: no pile-up
            totals = metrics if not totals else jax.tree.map(jnp.add, totals, metrics)
        return {name: float(total / jnp.maximum(weight, 1e-9)) for name, (total, weight) in totals.items()}

    return evaluate

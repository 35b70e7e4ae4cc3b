"""Ranks of the test labels under every row of the results table, over the same windows and the whole catalogue."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from user_llm.data.pipeline import evaluation_batches
from user_llm.decoding.beam import BeamResult, beam_search
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.evaluation.metrics import ranks_from_items, ranks_from_scores
from user_llm.models import parameters
from user_llm.models.parameters import Parameters
from user_llm.parallel.mesh import put_batch

Scores = Callable[[Mapping[str, np.ndarray]], np.ndarray]
Beams = Callable[[Mapping[str, np.ndarray]], BeamResult]


def rank_by_scores(scores: Scores, source: Any, *, batch_size: int, exclude_history: bool) -> np.ndarray:
    """Ranks `[n]` of the labels of all windows in `source`, by `scores(batch) -> [B, I+1]`."""
    ranks = []
    for batch, real in _batches(source, batch_size, "ranking"):
        excluded = batch["history/item"][real] if exclude_history else None
        ranks.append(ranks_from_scores(np.asarray(scores(batch))[real], batch["label/item"][real], excluded))
    return np.concatenate(ranks)


def rank_by_beams(
    beams: Beams,
    source: Any,
    trie: CatalogueTrie,
    *,
    batch_size: int,
    description: str,
    read: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks `[n]` (inf: no beam found the label) and the items `[n, J]` of the beams, best first.

    Items whose titles have the same tokens are one hypothesis: a label among them takes the last place of the tie.

    Args:
      beams: batch → `BeamResult`.
      read: for free beams, which come without items: tokens `[B, J, T]` → item ids `[B, J]`, 0 = no title.
    """
    canonical, group_size = np.asarray(trie.canonical_item), np.asarray(trie.group_size)
    ranks, items = [], []
    for batch, real in _batches(source, batch_size, description):
        result = beams(batch)
        found = np.asarray(result.items if read is None else read(np.asarray(result.tokens)))[real]
        labels = batch["label/item"][real]
        ranks.append(ranks_from_items(found, canonical[labels], group_size[labels]))
        items.append(found)
    return np.concatenate(ranks), np.concatenate(items)


def encoder_scores(
    graphdef: nnx.GraphDef, buffers: Parameters, mesh: Mesh
) -> Callable[[Parameters, Mapping[str, np.ndarray]], jax.Array]:
    """Returns `(values, batch) -> [B, I+1]`: the encoder alone, its next-item logits after the newest event."""

    @jax.jit
    def apply(values, buffers, item, rating):
        model = parameters.merge(graphdef, values, buffers)
        embeddings = model({"item": item, "rating": rating}, item > 0)
        return model.item_logits(embeddings[:, -1])

    def scores(values, batch):
        batch = put_batch({name: batch[f"history/{name}"] for name in ("item", "rating")}, mesh)
        return apply(values, buffers, batch["item"], batch["rating"])

    return scores


def user_llm_beams(
    graphdef: nnx.GraphDef,
    values: Parameters,
    buffers: Parameters,
    mesh: Mesh,
    *,
    trie: CatalogueTrie | None,
    eos_id: int,
    num_beams: int,
    max_steps: int,
    exclude_history: bool,
    with_context: bool = True,
) -> Beams:
    """Beams of the contextualised LLM, or with `with_context=False` of its LLM with every gate shut."""

    @jax.jit
    def apply(values, buffers, trie, batch):
        model = parameters.merge(graphdef, values, buffers)
        item = batch["context/item"]
        context = model.encode({"item": item, "rating": batch["context/rating"]}, item > 0) if with_context else None
        return beam_search(
            model,
            batch["prompt_tokens"],
            context,
            num_beams=num_beams,
            max_steps=max_steps,
            eos_id=eos_id,
            trie=trie,
            excluded_items=batch["history/item"] if exclude_history else None,
        )

    def beams(batch):
        # A shuffled source brings other users' events as the context; the history stays the user's own.
        context = {
            f"context/{name}": batch.get(f"context/{name}", batch[f"history/{name}"]) for name in ("item", "rating")
        }
        wanted = {key: batch[key] for key in ("prompt_tokens", "history/item")}
        return apply(values, buffers, trie, put_batch({**wanted, **context}, mesh))

    return beams


class Subset:
    """Some examples of a source, in the order of `ids`."""

    def __init__(self, source: Any, ids: np.ndarray):
        self._source, self._ids = source, ids

    @classmethod
    def evenly(cls, source: Any, most: int) -> "Subset":
        """At most `most` examples, evenly spread over the source; 0 takes all."""
        count = min(most or len(source), len(source))
        return cls(source, np.linspace(0, len(source) - 1, count).astype(np.int64))

    def __len__(self) -> int:
        return len(self._ids)

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The examples number `ids` of the subset."""
        return self._source.gather(self._ids[ids])


class ShuffledContexts:
    """A source of the same windows, each read with another user's history as the context.

    A fixed rotation, so nobody keeps their own: what the LLM still gets right, it knows without the user.
    """

    def __init__(self, source: Any):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The windows `ids`, with `context/item` and `context/rating` of other users."""
        batch = self._source.gather(ids)
        other = self._source.gather((ids + max(1, len(self) // 2)) % len(self))
        return {**batch, **{f"context/{name}": other[f"history/{name}"] for name in ("item", "rating")}}


def mean_metrics(objective, graphdef: nnx.GraphDef, buffers: Parameters, source: Any, batch_size: int, mesh: Mesh):
    """Returns `values -> {metric: mean over source}` for a training objective: a validation loss."""

    @jax.jit
    def apply(values, buffers, batch):
        _, _, metrics = objective(parameters.merge(graphdef, values, buffers), batch, None)
        return metrics

    def evaluate(values: Parameters) -> dict[str, float]:
        totals: dict[str, jax.Array] = {}
        for batch in evaluation_batches(source, batch_size):
            metrics = apply(values, buffers, put_batch(batch, mesh))
            totals = metrics if not totals else jax.tree.map(jnp.add, totals, metrics)
        return {name: float(total / jnp.maximum(weight, 1e-9)) for name, (total, weight) in totals.items()}

    return evaluate


def _batches(source: Any, batch_size: int, description: str) -> Iterable[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Evaluation batches with the mask of their real rows, under a progress bar."""
    with tqdm(total=len(source), desc=description, unit="user", dynamic_ncols=True, disable=None) as bar:
        for batch in evaluation_batches(source, batch_size):
            real = batch["weight"] > 0
            yield batch, real
            bar.update(int(real.sum()))

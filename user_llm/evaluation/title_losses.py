"""Where a language model loses on the way to a title: by token, beside what its encoder says of the same tokens."""

from collections.abc import Mapping
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from user_llm.data.pipeline import Source
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.paths import nodes_above, paths_to
from user_llm.decoding.prefill import extend, prefill
from user_llm.decoding.prior import DensePrior
from user_llm.evaluation.scores import Scores
from user_llm.evaluation.shares import Share
from user_llm.evaluation.users import context_of, inputs_of
from user_llm.models.model import Model
from user_llm.models.user_llm import UserLLM
from user_llm.parallel.mesh import put_batch


class TitleLosses(NamedTuple):
    """Of the tokens of labels' titles, EOS included: float32 `[n, T]`, 0 behind the end.

    Attributes:
      llm: -log p of the token among the whole vocabulary.
      outside: -log of what the LLM gives all tokens that may follow in the catalogue: the part of `llm` that tells no
        title from another.
      encoder: -log of what the encoder gives the titles below the token, of those below the one before; 0 without one.
      choices: how many tokens may follow; 0 behind the end, 1 where the catalogue leaves nothing to choose.
    """

    llm: np.ndarray
    outside: np.ndarray
    encoder: np.ndarray
    choices: np.ndarray


def title_losses(
    model: Model, encoder: Scores | None, source: Source, trie: CatalogueTrie, *, batch_size: int
) -> TitleLosses:
    """Of the labels of all windows in `source`, which have prompts."""
    parts = []
    for batch, real in Share(len(source), batch_size).batches(source, "losses by token"):
        inputs, labels = put_batch(inputs_of(batch), model.mesh), jnp.asarray(batch["label/item"])
        items = None if encoder is None else jnp.asarray(encoder(batch).all())
        parts.append([np.asarray(x)[real] for x in _losses(model, trie, inputs, labels, items)])
    return TitleLosses(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@jax.jit
def _losses(model: Model, trie: CatalogueTrie, batch: Mapping[str, jax.Array], labels, items) -> tuple[jax.Array, ...]:
    llm, titles = cast(UserLLM, model.module()), trie.title_of_item[labels]
    above, below = nodes_above(trie, titles), paths_to(trie, titles[:, None])[:, :, 0].T
    there = below >= 0
    length = above.shape[1]
    tokens = jnp.where(there, trie.token[below], 0)
    prompt = prefill(llm, batch["prompt_tokens"], batch["prompt_lengths"], context_of(llm, batch), free_slots=length)
    hidden = prompt.hidden
    if length > 1:
        sees = jnp.tri(length - 1, length, dtype=bool)[None]
        behind, _ = extend(llm, prompt, tokens[:, :-1], steps=jnp.arange(length - 1), sees=sees, slot=0)
        hidden = jnp.concatenate([hidden, behind], axis=1)
    width = max(trie.fan_out)

    def of_row(row):
        hidden, above, tokens = row
        log_probs = jax.nn.log_softmax(llm.logits(hidden), axis=-1)
        children, real = trie.children(above, width)
        own = jnp.take_along_axis(log_probs, tokens[:, None], axis=1)[:, 0]
        following = jnp.take_along_axis(log_probs, trie.token[children], axis=1)
        return -own, -jax.nn.logsumexp(jnp.where(real, following, -jnp.inf), axis=1)

    own, outside = jax.lax.map(of_row, (hidden, above, tokens))
    encoder = jnp.zeros_like(own)
    if items is not None:
        masses = DensePrior.build(trie, jax.nn.log_softmax(items.at[:, 0].set(-jnp.inf), axis=-1)).masses
        rows = jnp.arange(len(labels))[:, None]
        encoder = masses[above, rows] - masses[below, rows]
    choices = jnp.where(there, trie.num_children[above], 0)
    return *(jnp.where(there, x, 0) for x in (own, outside, encoder)), choices

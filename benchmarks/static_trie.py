"""STATIC's constrained beam search (arXiv 2602.22647), on top of our model and cache: a peer of `CatalogueTrie`.

Semantic IDs all have the same number of codes. The first two are tables over the vocabulary; below them the tree is a
sparse matrix, of which each step reads as many children of a beam as any node of that depth has. Steps are unrolled:
every one has a width of its own. Nothing here is its authors' code.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from user_llm.decoding.prefill import Context, DecodingModel, extend, prefill


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StaticTrie:
    """Items of L codes each. A state is a prefix of two codes or more, numbered depth by depth.

    Attributes:
        root: bool `[V]`, first codes.
        valid: bool `[V, V]`, pairs of codes that begin an item.
        states: int32 `[V, V]`, their states.
        rows: int32 `[states that go on + 1]`, where the transitions of a state begin.
        transitions: int32 `[transitions, 2]`: a code, and the state that it leads to.
        widths: most transitions of a state of 2, 3, … L - 1 codes.
    """

    root: jax.Array
    valid: jax.Array
    states: jax.Array
    rows: jax.Array
    transitions: jax.Array
    widths: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def build(cls, codes: np.ndarray, vocabulary: int) -> "StaticTrie":
        """Of items int32 `[items, L]`, L at least 3, in any order; codes are less than `vocabulary`."""
        codes = codes[np.lexsort(codes.T[::-1])]
        begins = np.zeros(len(codes), bool)  # rows whose prefix is not that of the row before
        begins[0] = True
        for column in codes.T[:2]:
            begins[1:] |= column[1:] != column[:-1]
        states = np.zeros((vocabulary, vocabulary), np.int32)
        valid = np.zeros((vocabulary, vocabulary), bool)
        pairs = tuple(codes[begins, :2].T)
        states[pairs], valid[pairs] = np.arange(len(pairs[0])), True
        children, tokens = [], []
        for column in codes.T[2:]:
            parent = np.cumsum(begins, dtype=np.int32) - 1
            begins[1:] |= column[1:] != column[:-1]
            children.append(np.bincount(parent[begins]).astype(np.int32))
            tokens.append(column[begins])
        ends = np.cumsum(np.concatenate([[0], *children]), dtype=np.int32)
        leads_to = np.arange(ends[-1], dtype=np.int32) + np.int32(len(pairs[0]))
        return cls(
            root=jnp.asarray(valid.any(axis=1)),
            valid=jnp.asarray(valid),
            states=jnp.asarray(states),
            rows=jnp.asarray(ends),
            transitions=jnp.asarray(np.stack([np.concatenate(tokens), leads_to], axis=1)),
            widths=tuple(int(counts.max()) for counts in children),
        )

    def second(self, first: jax.Array, log_probs: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The best `count` second codes behind each first one.

        Args:
            first: int32 `[B, J]`; log_probs: float32 `[B, J, V]`.

        Returns:
            log-probabilities (-inf: no code), codes and states, each `[B, J, count]`.
        """
        best, codes = jax.lax.top_k(jnp.where(self.valid[first], log_probs, -jnp.inf), count)
        return best, codes, self.states[first[..., None], codes]

    def further(self, states: jax.Array, log_probs: jax.Array, width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """All codes behind states int32 `[B, J]`, which have at most `width`; answers like `second`."""
        places = self.rows[states][..., None] + jnp.arange(width)
        read = self.transitions[places]  # behind the last it reads the last, which is masked
        codes, leads_to = read[..., 0], read[..., 1]
        real = places < self.rows[states + 1][..., None]
        return jnp.where(real, jnp.take_along_axis(log_probs, codes, axis=-1), -jnp.inf), codes, leads_to


@functools.partial(jax.jit, static_argnames="num_beams")
def static_search(
    model: DecodingModel[Context],
    prompt_tokens: jax.Array,
    prompt_lengths: jax.Array,
    trie: StaticTrie,
    *,
    num_beams: int,
) -> tuple[jax.Array, jax.Array]:
    """The likeliest items behind prompts int32 `[B, P]`: their codes int32 `[B, J, L]`, and float32 scores `[B, J]`."""
    batch, steps = len(prompt_tokens), len(trie.widths) + 2
    prompt = prefill(model, prompt_tokens, prompt_lengths, None, free_slots=steps * num_beams)
    log_probs = jax.nn.log_softmax(model.logits(prompt.hidden)[:, 0])
    scores, chosen = jax.lax.top_k(jnp.where(trie.root, log_probs, -jnp.inf), num_beams)
    tokens = jnp.zeros((batch, num_beams, steps), jnp.int32).at[:, :, 0].set(chosen)
    slots = jnp.full((batch, num_beams, steps), -1).at[:, :, 0].set(jnp.arange(num_beams))  # of each beam's ancestors
    states = jnp.zeros((batch, num_beams), jnp.int32)
    for step in range(1, steps):
        sees = slots[..., None] == jnp.arange(num_beams)
        hidden, cache = extend(
            model,
            prompt,
            tokens[:, :, step - 1],
            steps=step - 1,
            sees=sees.reshape(batch, num_beams, steps * num_beams),
            slot=(step - 1) * num_beams,
        )
        prompt = prompt._replace(cache=cache)
        log_probs = jax.nn.log_softmax(model.logits(hidden))
        if step == 1:
            candidates, codes, leads_to = trie.second(tokens[:, :, 0], log_probs, num_beams)
        else:
            candidates, codes, leads_to = trie.further(states, log_probs, trie.widths[step - 2])
        scores, chosen = jax.lax.top_k((scores[..., None] + candidates).reshape(batch, -1), num_beams)
        parents = (chosen // candidates.shape[2])[..., None]
        code = jnp.take_along_axis(codes.reshape(batch, -1), chosen, axis=1)
        states = jnp.take_along_axis(leads_to.reshape(batch, -1), chosen, axis=1)
        tokens = jnp.take_along_axis(tokens, parents, axis=1).at[:, :, step].set(code)
        slots = jnp.take_along_axis(slots, parents, axis=1).at[:, :, step].set(jnp.arange(num_beams))
    return tokens, scores

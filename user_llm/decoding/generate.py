"""Greedy and sampled text from a prompt."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from user_llm.arguments import is_number, whole
from user_llm.decoding.prefill import Context, DecodingModel, Prompt, extend, prefill
from user_llm.errors import UserError
from user_llm.models.attention import Cache

COLDEST = 1e-6  # temperature; logits divided by much less than this are infinite in float32


class _State(NamedTuple):
    step: jax.Array  # tokens chosen so far
    tokens: jax.Array  # [B, max_new_tokens]
    finished: jax.Array  # [B]
    cache: Cache


def generate(
    model: DecodingModel[Context],
    prompt_tokens: jax.Array,
    prompt_lengths: jax.Array,
    context: Context | None = None,
    *,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int = 0,
    temperature: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Continues each prompt up to and including its first `eos_id`.

    Compiled once per shape of its inputs; any temperature above 0 shares one program.

    Args:
        prompt_tokens: int32 `[B, P]`, starting with BOS; prompt_lengths: int32 `[B]`, tokens in each row.
        context: what the model attends to besides the text (`UserLLM.encode`), or None.
        temperature: 0 takes the likeliest token; above 0 draws from softmax(logits / temperature).
        key: PRNG key; needed when temperature is above 0.

    Returns:
        int32 `[B, max_new_tokens]`, `pad_id` after EOS.

    Raises:
        UserError: an argument is out of range, or sampling was asked for without a key.
    """
    max_new_tokens = whole("max_new_tokens", max_new_tokens, 1)
    if not is_number(temperature) or not (temperature == 0 or temperature >= COLDEST):
        raise UserError(f"temperature must be 0 (greedy) or a number of at least {COLDEST}, got {temperature!r}.")
    if temperature > 0 and key is None:
        raise UserError(f"temperature {temperature} samples: pass key=jax.random.key(seed)")
    return _generate(
        model,
        prompt_tokens,
        prompt_lengths,
        context,
        temperature,
        key if temperature > 0 else None,
        max_new_tokens=max_new_tokens,
        eos_id=eos_id,
        pad_id=pad_id,
    )


@functools.partial(jax.jit, static_argnames=("max_new_tokens",))
def _generate(model, prompt_tokens, prompt_lengths, context, temperature, key, *, max_new_tokens, eos_id, pad_id):
    prompt = prefill(model, prompt_tokens, prompt_lengths, context, free_slots=max_new_tokens)

    def choose(state: _State, hidden: jax.Array) -> _State:
        logits = model.logits(hidden[:, 0])
        if key is None:
            token = jnp.argmax(logits, axis=-1)
        else:
            token = jax.random.categorical(jax.random.fold_in(key, state.step), logits / temperature)
        token = jnp.where(state.finished, pad_id, token.astype(jnp.int32))
        return state._replace(
            step=state.step + 1,
            tokens=state.tokens.at[:, state.step].set(token),
            finished=state.finished | (token == eos_id),
        )

    def advance(state: _State) -> _State:
        last = state.step - 1
        hidden, cache = extend(
            model,
            prompt._replace(cache=state.cache),
            jax.lax.dynamic_slice_in_dim(state.tokens, last, 1, axis=1),
            steps=last,
            sees=(jnp.arange(max_new_tokens) <= last)[None, None],
            slot=last,
        )
        return choose(state._replace(cache=cache), hidden)

    def running(state: _State) -> jax.Array:
        return (state.step < max_new_tokens) & ~jnp.all(state.finished)

    state = choose(_start(prompt, max_new_tokens, pad_id), prompt.hidden)
    return jax.lax.while_loop(running, advance, state).tokens


def _start(prompt: Prompt[Any], max_new_tokens: int, pad_id: int) -> _State:
    batch = prompt.lengths.shape[0]
    return _State(
        step=jnp.int32(0),
        tokens=jnp.full((batch, max_new_tokens), pad_id, jnp.int32),
        finished=jnp.zeros(batch, bool),
        cache=prompt.cache,
    )

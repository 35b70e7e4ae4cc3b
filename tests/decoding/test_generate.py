"""Generated text against an argmax over full forward passes, and samples against the softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

from user_llm.checkpoints.huggingface import load_language_model
from user_llm.decoding.generate import generate
from user_llm.errors import UserError


def test_greedy_is_the_argmax_of_full_forward_passes(truth):
    tokens = np.asarray(
        generate(truth.model, truth.prompts, truth.lengths, truth.context, max_new_tokens=4, eos_id=truth.eos_id)
    )
    for row in truth.rows:
        expected = ()
        while len(expected) < 4 and expected[-1:] != (truth.eos_id,):
            expected += (int(np.argmax(truth.next_log_probs[row][expected])),)
        assert tuple(tokens[row]) == expected + (0,) * (4 - len(expected))


def test_generation_stops_at_eos_and_pads(truth):
    """Any token may serve as EOS: take the second that greedy decoding gives."""
    plain = generate(truth.model, truth.prompts, truth.lengths, truth.context, max_new_tokens=4, eos_id=-1)
    eos_id = int(plain[0, 1])
    stopped = generate(
        truth.model, truth.prompts, truth.lengths, truth.context, max_new_tokens=4, eos_id=eos_id, pad_id=0
    )
    for row, full in zip(np.asarray(stopped), np.asarray(plain), strict=True):
        ends = np.flatnonzero(full == eos_id)
        length = ends[0] + 1 if ends.size else 4
        np.testing.assert_array_equal(row, np.where(np.arange(4) < length, full, 0))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_samples_follow_the_softmax_at_the_temperature(truth, temperature):
    draws = 3000
    prompts = jnp.repeat(truth.prompts[:1], draws, axis=0)
    context = jax.tree.map(
        lambda x: jnp.repeat(x[:, :1], draws, axis=1) if x.ndim == 5 else jnp.repeat(x[:1], draws, axis=0),
        truth.context,
    )
    tokens = generate(
        truth.model,
        prompts,
        jnp.repeat(truth.lengths[:1], draws),
        context,
        max_new_tokens=2,
        eos_id=truth.eos_id,
        temperature=temperature,
        key=jax.random.key(0),
    )
    first = np.asarray(tokens[:, 0])
    table = truth.next_log_probs[0]
    likeliest = int(np.argmax(np.delete(table[()], truth.eos_id)))
    likeliest += likeliest >= truth.eos_id
    for sample, log_probs in (
        (first, table[()]),
        (np.asarray(tokens[:, 1])[first == likeliest], table[(likeliest,)]),
    ):
        weights = np.exp(log_probs / temperature)
        frequency = np.bincount(sample, minlength=7) / len(sample)
        np.testing.assert_allclose(frequency, weights / weights.sum(), atol=3 / np.sqrt(len(sample)) * 0.5)


def test_a_published_checkpoint_tells_its_known_story(shared_dir):
    folder = shared_dir / "llm" / "stories260K"
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    model = load_language_model(folder)
    prompts = [tokenizer.encode(text, add_bos=True) for text in ("Once upon a time", "Tom had a dog. Once upon a")]
    padded = np.zeros((2, max(map(len, prompts))), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in prompts])
    tokens = generate(model, padded, lengths, max_new_tokens=55, eos_id=tokenizer.eos_id())
    story = "Once upon a time" + tokenizer.decode(tokens[0].tolist())
    assert story.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball."
    )


def test_bad_arguments_are_named(truth):
    def call(**changes):
        options = {"max_new_tokens": 2, "eos_id": 2} | changes
        return generate(truth.model, truth.prompts, truth.lengths, truth.context, **options)

    for wrong in (0, 2.0, "2", True, None):
        with pytest.raises(UserError, match="max_new_tokens must be a whole number of at least 1, got "):
            call(max_new_tokens=wrong)
    for wrong in (-1.0, float("nan"), float("inf"), 1e-30, 10**400, True, "1", None):
        with pytest.raises(UserError, match=r"temperature must be 0 \(greedy\) or a number of at least 1e-06, got "):
            call(temperature=wrong)
    with pytest.raises(ValueError, match=r"pass key=jax.random.key\(seed\)"):
        call(temperature=1.0)

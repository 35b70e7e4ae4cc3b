"""A soft prompt is a text like any other: against one user at a time, without padding, cache or beams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from user_llm.decoding.beam import beam_search
from user_llm.decoding.generate import generate
from user_llm.models import parameters
from user_llm.models.language_model import LanguageModelConfig, causal_mask
from user_llm.models.soft_prompt import LENGTH, SoftPrompt, SoftPromptConfig

TASK = 2
LLAMA = dict()
GEMMA = dict(
    norm="rms_plus_one",
    embedding_scale=4.0,
    qk_norm=True,
    sliding_window=3,
    local_layers=(True, False, True),
    local_rope_theta=100.0,
)
GPT = dict(norm="layer", activation="gelu_tanh", gated=False, learned_positions=True, max_length=32)
LAYOUTS = {
    "llama": dict(family=LLAMA),
    "gemma, scanned": dict(family=GEMMA, scan_layers=True),
    "gpt, latents": dict(family=GPT, perceiver=True),
}
PROMPTS = np.array([[1, 7, 9, 4], [1, 8, 0, 0], [1, 5, 6, 0]])
LENGTHS = np.array([4, 2, 3])


@pytest.fixture(scope="module", params=LAYOUTS)
def model(request, make_user_llm):
    return make_user_llm(soft_prompt=TASK, **LAYOUTS[request.param])


@pytest.fixture(scope="module")
def context(model, history):
    return jax.jit(lambda model: model.encode(history, history["item"] > 0))(model)


@jax.jit
def read(model, tokens, context):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, cache = model(tokens, positions, causal_mask(jnp.ones(tokens.shape, bool)), context=context)
    assert cache is None
    return model.logits(hidden)


@jax.jit
def read_alone(model, events, tokens):
    """Logits [T, V] of one text behind one user's events, none of them padding, and the task prompt."""
    prefix = [model.connector.task_PD[...]]
    if events["item"].shape[1]:
        known = jnp.ones(events["item"].shape, bool)
        embeddings = model.encoder(events, known)
        if model.perceiver is not None:
            embeddings, _ = model.perceiver(embeddings, known)
        prefix = [embeddings[0] @ model.connector.projection_UD[...], *prefix]
    x = jnp.concatenate([*prefix, model.language_model.embed(tokens)])[None]
    positions = jnp.arange(x.shape[1])[None]
    hidden, _ = model.language_model.read(x, positions, causal_mask(jnp.ones(positions.shape, bool)))
    return model.logits(hidden)[0, -len(tokens) :]


def test_the_users_vectors_then_the_tasks_stand_before_the_text(model, history, tokens, context):
    found = read(model, tokens, context)
    for user in (1, 2):
        known = history["item"][user] > 0
        events = {name: ids[user : user + 1, known] for name, ids in history.items()}
        np.testing.assert_allclose(found[user], read_alone(model, events, tokens[user]), atol=2e-5)


def read_answers(model, context, answers):
    """Log-probability float32 [B, T, V] of the tokens of `answers` [B, T], in one pass without a cache."""
    texts = np.zeros((len(PROMPTS), PROMPTS.shape[1] + answers.shape[1]), int)
    for text, prompt, length, answer in zip(texts, PROMPTS, LENGTHS, answers, strict=True):
        text[: length + len(answer)] = [*prompt[:length], *answer]
    logits = jax.nn.log_softmax(read(model, texts, context))
    return np.stack([row[at - 1 : at - 1 + answers.shape[1]] for row, at in zip(logits, LENGTHS, strict=True)])


def test_beams_score_what_a_pass_without_a_cache_does(model, context):
    found = beam_search(model, PROMPTS, LENGTHS, context, num_beams=3, max_steps=4, eos_id=-1)
    for beam in range(3):
        answers = np.asarray(found.tokens[:, beam])
        chosen = np.take_along_axis(read_answers(model, context, answers), answers[..., None], axis=2)
        np.testing.assert_allclose(found.scores[:, beam], chosen.sum(axis=(1, 2)), atol=1e-4)


def test_greedy_text_is_that_of_passes_without_a_cache(make_user_llm, history):
    model = make_user_llm(soft_prompt=TASK)
    context = jax.jit(lambda model: model.encode(history, history["item"] > 0))(model)
    found = np.asarray(generate(model, PROMPTS, LENGTHS, context, max_new_tokens=4, eos_id=-1))
    np.testing.assert_array_equal(read_answers(model, context, found).argmax(axis=-1), found)


def test_without_task_and_events_it_is_the_language_model_alone(make_user_llm, tokens):
    model = make_user_llm(soft_prompt=0)
    assert "connector/task_PD" not in parameters.split(model)[1]
    nobody = {name: jnp.zeros((3, 4), int) for name in ("item", "rating")}
    context = jax.jit(lambda model: model.encode(nobody, nobody["item"] > 0))(model)
    np.testing.assert_allclose(read(model, tokens, context), read(model, tokens, None), atol=1e-5)


def test_vectors_start_at_a_length_counted_in_token_embeddings():
    dims = dict(num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, hidden=8)
    config = LanguageModelConfig(vocab_size=200, width=64, embedding_scale=4.0, **dims)
    connector = SoftPrompt(SoftPromptConfig(), config, 16, rngs=nnx.Rngs(0))
    embeddings = np.random.default_rng(0).normal(size=(4, 25, 16))
    vectors = connector.context(embeddings, np.ones((4, 25), bool)).vectors
    assert vectors.shape == (4, 35, 64)
    for part in (vectors[:, :25], vectors[:, 25:]):
        assert part.std() == pytest.approx(LENGTH * 4.0 / np.sqrt(64), rel=0.15)

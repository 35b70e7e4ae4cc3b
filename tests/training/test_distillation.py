"""Soft targets against sums over titles, and their loss against dense softmaxes in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.models import sharding
from user_llm.models.language_model import causal_mask
from user_llm.training.distillation import SoftTargets, Teacher, taught_cross_entropy
from user_llm.training.objectives import contextualised_objective

EOS, CHUNK, SHARE = 2, 5, 0.7
# By item, from 1: some equal, some the beginning of others.
TITLES = [(3, 4), (5,), (3,), (5,), (7, 8, 9), (7, 8), (3, 4, 5, 6), (8,), (7, 9), (10,), (11, 3)]
ITEMS, WIDEST = len(TITLES), 5


def build(most=None):
    """The trie of `TITLES`, of each as many tokens as int [I+1] `most` says."""
    tokens, lengths = np.zeros((ITEMS + 1, 4), np.int32), np.array([0, *map(len, TITLES)])
    for item, title in enumerate(TITLES, start=1):
        tokens[item, : len(title)] = title
    return CatalogueTrie.build(tokens, lengths if most is None else np.minimum(lengths, most), EOS)


@pytest.fixture(scope="module")
def trie():
    return build()


def opinion(logits, prefix):
    """What the encoder says of the token behind a prefix: token → probability, float64, by sums over all titles."""
    shares = np.exp(logits[1:] - logits[1:].max())
    found: dict[int, float] = {}
    for share, title in zip(shares, TITLES, strict=True):
        whole = (*title, EOS)
        if whole[: len(prefix)] == tuple(prefix) and len(whole) > len(prefix):
            found[whole[len(prefix)]] = found.get(whole[len(prefix)], 0.0) + share
    return {token: share / sum(found.values()) for token, share in found.items()}


def test_soft_targets_are_what_the_encoder_says_of_all_titles_below(trie):
    logits = np.random.default_rng(0).normal(size=(5, ITEMS + 1), scale=2).astype(np.float32)
    labels, taught = np.array([1, 7, 4, 6, 0]), np.array([True, True, True, False, True])
    levels = Teacher(trie, SHARE).targets(jnp.array(logits), jnp.array(labels), jnp.array(taught))
    assert sum(level.tokens.shape[1] for level in levels) == WIDEST
    for row, label in enumerate(labels[:4]):
        title = TITLES[label - 1]
        for level in levels:
            for step in range(level.tokens.shape[1]):
                place = level.start + step
                if place > len(title):
                    continue
                expected = opinion(logits[row].astype(np.float64), title[:place])
                found: dict[int, float] = {}
                tokens = np.broadcast_to(level.tokens, level.shares.shape)[row, step]
                for token, share in zip(tokens, level.shares[row, step], strict=True):
                    if share > 0:
                        found[int(token)] = found.get(int(token), 0.0) + float(share)
                wanted = {token: SHARE * share for token, share in expected.items()} if taught[row] else {}
                assert found == pytest.approx(wanted, rel=1e-4, abs=1e-7)


@pytest.fixture(scope="module", params=[sharding.LARGE, ITEMS], ids=["", "padded"])
def lesson(request, lively, build_user_llm, batch):
    """A model of items alone, its table padded or not, and a batch whose answers are the titles of its labels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "LARGE", request.param)
        model = lively(functools.partial(build_user_llm, features=("item",), dropout=0.5))
    rows, length = batch["decoder_input_tokens"].shape
    prompts, tokens = batch["prompt_lengths"], np.zeros((rows, length + 1), np.int32)
    weights = np.zeros((rows, length), np.float32)
    for row, (prompt, label) in enumerate(zip(prompts, batch["label/item"], strict=True)):
        answer = (*TITLES[label - 1], EOS)[: length + 1 - prompt]
        tokens[row, :prompt] = 1 + row % 3
        tokens[row, prompt : prompt + len(answer)] = answer
        weights[row, prompt - 1 : prompt - 1 + len(answer)] = 1.0
    texts = {"decoder_input_tokens": tokens[:, :-1], "decoder_target_tokens": tokens[:, 1:]}
    return model, {**batch, **texts, "decoder_loss_weights": weights}


@jax.jit
def predicted(model, batch, key):
    """Logits of the texts' tokens [b, A, V], and of the items [b, I + 1], of the very embeddings that dropout by `key`
    leaves; of texts that ask for items, in place of histories, the latter are 0."""
    tokens, items = batch["decoder_input_tokens"], jnp.zeros((len(batch["label/item"]), ITEMS + 1))
    if "history/item" in batch:
        history = {name: batch[f"history/{name}"] for name in ("item", "rating")}
        mask = history["item"] > 0
        embeddings = model.encoder(history, mask, key=key)
        context, items = model.context(embeddings, mask), model.encoder.query_logits(embeddings[:, -1])
    else:
        context = model.item_context(batch["label/item"])
    hidden, _ = model(tokens, batch["decoder_positions"], causal_mask(tokens > 0), context=context)
    return model.logits(hidden), items


def test_the_loss_is_that_of_the_label_and_of_the_encoders_opinion(trie, lesson):
    (model, batch), key = lesson, jax.random.key(0)
    logits, items = (np.asarray(x, np.float64) for x in predicted(model, batch, key))
    expected = own = 0.0
    for row, label in enumerate(batch["label/item"]):
        prompt, title = batch["prompt_lengths"][row], TITLES[label - 1]
        for place in np.flatnonzero(batch["decoder_loss_weights"][row]):
            log_probs = logits[row, place] - np.log(np.exp(logits[row, place]).sum())
            taught = opinion(items[row], title[: place - prompt + 1])
            expected -= (1 - SHARE) * log_probs[batch["decoder_target_tokens"][row, place]]
            expected -= SHARE * sum(share * log_probs[token] for token, share in taught.items())
        own -= items[row, label] - np.log(np.exp(items[row, 1:]).sum())
    objective = jax.jit(contextualised_objective(CHUNK, 0.0, Teacher(trie, SHARE)))
    loss, weight, metrics = objective(model, batch, key)
    assert float(metrics["loss"][0]) == pytest.approx(expected, rel=1e-4)
    assert float(metrics["loss/item"][0]) == pytest.approx(own, rel=1e-4)
    assert float(loss) == pytest.approx(expected + own, rel=1e-4)
    assert float(weight) == batch["decoder_loss_weights"].sum()
    frozen, _, metrics = jax.jit(contextualised_objective(CHUNK, 0.0, Teacher(trie, SHARE, learns=False)))(
        model, batch, key
    )
    assert "loss/item" not in metrics
    assert float(frozen) == pytest.approx(expected, rel=1e-4)
    plain = jax.jit(contextualised_objective(CHUNK))
    assert float(objective(model, batch, None)[0]) == float(plain(model, batch, None)[0])  # a validation is not taught
    nothing = jax.jit(contextualised_objective(CHUNK, 0.0, Teacher(trie, 0.0)))(model, batch, key)
    assert float(nothing[2]["loss"][0]) == pytest.approx(float(plain(model, batch, key)[0]), rel=1e-5)


@pytest.mark.parametrize(("histories", "share"), [(True, SHARE), (True, 0.0), (False, SHARE)])
def test_within_the_catalogue_a_token_is_weighed_against_those_that_may_follow(trie, lesson, histories, share):
    model, batch = lesson
    if not histories:
        batch = {name: values for name, values in batch.items() if not name.startswith("history/")}
    (disturbed, items), (calm, _) = (
        [np.asarray(x, np.float64) for x in predicted(model, batch, key)] for key in (jax.random.key(0), None)
    )
    taught, of_labels = 0.0, 0.0
    for row, label in enumerate(batch["label/item"]):
        prompt, title = batch["prompt_lengths"][row], TITLES[label - 1]
        for place in np.flatnonzero(batch["decoder_loss_weights"][row]):
            said = opinion(items[row], title[: place - prompt + 1])
            loss = {}
            for name, logits in (("disturbed", disturbed), ("calm", calm)):
                following = {token: logits[row, place, token] for token in said}
                rivals = np.log(sum(np.exp(logit) for logit in following.values()))
                loss[name] = {token: rivals - logit for token, logit in following.items()}
            own = batch["decoder_target_tokens"][row, place]
            opinions = sum(part * loss["disturbed"][token] for token, part in said.items())
            of_labels += loss["calm"][own]
            taught += (1 - share) * loss["disturbed"][own] + share * opinions if histories else loss["calm"][own]
    objective = jax.jit(contextualised_objective(CHUNK, 0.0, Teacher(trie, share, learns=False, within_catalogue=True)))
    assert float(objective(model, batch, jax.random.key(0))[0]) == pytest.approx(taught, rel=1e-4)
    assert float(objective(model, batch, None)[0]) == pytest.approx(of_labels, rel=1e-4)
    assert of_labels < float(jax.jit(contextualised_objective(CHUNK))(model, batch, None)[0])


def test_within_the_catalogue_nothing_is_learnt_behind_what_tells_a_title(trie, lesson):
    model, batch = lesson
    short = build(trie.telling_tokens())
    assert len(short.token) < len(trie.token)
    options = dict(learns=False, within_catalogue=True)
    of_all, of_short = (
        jax.jit(contextualised_objective(CHUNK, 0.0, Teacher(own, SHARE, **options))) for own in (trie, short)
    )
    weights = batch["decoder_loss_weights"]
    ends = batch["prompt_lengths"] - 1 + trie.telling_tokens()[batch["label/item"]]
    fewer = weights * (np.arange(weights.shape[1]) < ends[:, None])
    whole, *others = (
        objective(model, {**batch, "decoder_loss_weights": own}, jax.random.key(0))
        for objective, own in ((of_all, weights), (of_all, fewer), (of_short, fewer))
    )
    for cut in others:
        assert float(cut[1]) == fewer.sum() < float(whole[1])
        assert float(cut[0]) == pytest.approx(float(whole[0]), rel=1e-5)


@pytest.mark.parametrize("vocabulary", [11, 200], ids=["wider than the vocabulary", "narrower"])
@pytest.mark.parametrize("shared", [True, False], ids=["the same tokens for all", "tokens of each"])
@pytest.mark.parametrize("within_catalogue", [True, False], ids=["within", "among all"])
def test_the_loss_of_soft_targets_and_its_gradient_are_those_of_dense_logits(vocabulary, shared, within_catalogue):
    texts, places, dim, following, start, cap = 3, 4, 6, 5, 1, 2.0
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(texts, places + start, dim)).astype(np.float32)
    table = rng.normal(size=(vocabulary, dim)).astype(np.float32)
    each = (1, 1) if shared else (texts, places)
    tokens = np.stack([rng.permutation(vocabulary)[:following] for _ in range(np.prod(each))]).reshape(*each, following)
    real = np.arange(following) < rng.integers(1, following + 1, (texts, places))[..., None]
    shares = 0.7 * real * rng.dirichlet(np.ones(following), (texts, places)).astype(np.float32)
    shares *= (rng.random((texts, places)) < 0.7)[..., None]  # the others are taught nothing
    targets = np.pad(np.broadcast_to(tokens[..., 0], (texts, places)), ((0, 0), (start, 0)))
    weights = rng.random((texts, places + start)).astype(np.float32)
    soft = SoftTargets(start, jnp.array(tokens), jnp.array(real), jnp.array(shares))
    options = dict(chunk_rows=CHUNK, softcap=cap, within_catalogue=within_catalogue)
    found = jax.value_and_grad(lambda h, t: taught_cross_entropy(h, t, targets, weights, soft, **options), (0, 1))

    def dense(hidden, table):
        logits = cap * jnp.tanh(hidden[:, start:] @ table.T / cap)
        one_hot = jax.nn.one_hot(tokens, vocabulary)  # [b, A', C, V]
        may_follow = (one_hot * real[..., None]).sum(2) > 0
        log_probs = jax.nn.log_softmax(jnp.where(may_follow, logits, -jnp.inf) if within_catalogue else logits)
        own = 1 - shares.sum(-1, keepdims=True)
        wanted = (one_hot * shares[..., None]).sum(2) + own * jax.nn.one_hot(targets[:, start:], vocabulary)
        return -jnp.sum(weights[:, start:, None] * wanted * jnp.where(wanted > 0, log_probs, 0.0))

    expected = jax.value_and_grad(dense, (0, 1))(hidden, table)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found(hidden, table), expected)


def test_texts_learnt_up_to_one_token_are_taught_that_token(trie, lesson, with_first_tokens):
    model, batch = lesson
    objective = jax.jit(contextualised_objective(CHUNK, 0.0, Teacher(trie, SHARE)))
    expected, found = (objective(model, one, jax.random.key(0)) for one in with_first_tokens(batch))
    assert float(found[1]) == float(expected[1])
    assert float(found[2]["loss"][0]) == pytest.approx(float(expected[2]["loss"][0]), rel=1e-5)

"""The objectives against plain loops over dense softmaxes in float64, and what sums promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from user_llm.data.by_length import ByLength, Cut, text_lengths
from user_llm.data.packing import Packed
from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel, LanguageModelConfig, causal_mask
from user_llm.models.soft_prompt import SoftPrompt, SoftPromptConfig
from user_llm.models.user_llm import UserLLM
from user_llm.parallel.mesh import AXES, put_batch
from user_llm.training.objectives import autoregressive_objective, contextualised_objective, text_objective

CHUNK = 5  # rows; divides nothing here


@pytest.fixture(scope="module")
def encoder(lively, build_encoder):
    return lively(build_encoder)


@pytest.fixture(scope="module")
def user_llm(lively, build_user_llm):
    return lively(build_user_llm)


def run(objective, model, batch, key=None):
    """(loss, weight, metrics) as floats."""
    return jax.tree.map(float, _jitted(objective)(model, batch, key))


@functools.cache
def _jitted(objective):
    return jax.jit(objective)


AUTOREGRESSIVE, CONTEXTUALISED = autoregressive_objective(CHUNK), contextualised_objective(CHUNK)
OBJECTIVES = {"encoder": AUTOREGRESSIVE, "user_llm": CONTEXTUALISED}
both = pytest.mark.parametrize("name", OBJECTIVES)


def negative_log_softmax(logits):
    return np.log(np.exp(logits).sum()) - logits


def dense_text_loss(predict, model, batch, *arguments):
    """The sum of a batch's losses, from logits of whole texts that `predict` computes."""
    logits, weights = np.asarray(predict(model, *arguments), np.float64), batch["decoder_loss_weights"]
    return sum(
        weights[row, at] * negative_log_softmax(logits[row, at])[batch["decoder_target_tokens"][row, at]]
        for row, at in np.argwhere(weights > 0)
    )


def naive_autoregressive(model, batch):
    """{feature: (loss, weight)}: every real event predicts the one after it, class 0 is in no softmax."""
    history = {name: batch[f"history/{name}"] for name in ("item", "rating")}
    embeddings = np.asarray(jax.jit(model)(history, history["item"] > 0), np.float64)
    categories = np.asarray(model.embedding.item_categories[...])
    totals = {}
    for feature in ("item", "category", "rating"):
        head = np.asarray(getattr(model, f"{feature}_head_UU")[...], np.float64)
        table = np.asarray(model.feature_table(feature), np.float64)[1:]
        loss = weight = 0.0
        for row, embedding in enumerate(embeddings):
            events = {name: [*history[name][row], batch[f"label/{name}"][row]] for name in history}
            for slot in range(len(embedding)):
                if events["item"][slot] == 0:
                    continue
                following = {name: events[name][slot + 1] for name in events}
                wanted = [following[feature]] if feature in following else categories[following["item"]]
                wanted = [target - 1 for target in wanted if target > 0]
                if wanted:
                    loss += np.mean(negative_log_softmax(table @ (embedding[slot] @ head))[wanted])
                    weight += 1
        totals[feature] = (loss, weight)
    return totals


def test_the_autoregressive_loss_is_a_dense_softmax_at_every_event(encoder, batch):
    assert (batch["history/item"] == 0).any()
    loss, weight, metrics = run(AUTOREGRESSIVE, encoder, batch)
    expected = naive_autoregressive(encoder, batch)
    for feature, (total, count) in expected.items():
        assert metrics[f"loss/{feature}"] == (pytest.approx(total, rel=1e-5), count)
    assert loss == pytest.approx(sum(total for total, _ in expected.values()), rel=1e-5)
    assert weight == (batch["history/item"] > 0).sum() == expected["item"][1] > expected["category"][1]
    assert metrics["loss"] == (loss, weight)


def test_histories_that_share_rows_give_the_same_loss_and_gradients(encoder, batch):
    dense = Packed(None, rows=12).pack({name: ids for name, ids in batch.items() if name.startswith(("hist", "label"))})
    assert dense["history/item"].shape == (12, 8)
    graphdef, values, buffers = parameters.split(encoder)

    @jax.jit
    def gradients(values, batch):
        def loss(values):
            return AUTOREGRESSIVE(parameters.merge(graphdef, values, buffers), batch, None)[:2]

        return jax.value_and_grad(loss, has_aux=True)(values)

    (loss, weight), found = gradients(values, dense)
    (expected, same_weight), wanted = gradients(values, batch)
    assert weight == same_weight
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for path, gradient in wanted.items():
        np.testing.assert_allclose(found[path], gradient, atol=2e-4, err_msg=path)


def test_the_contextualised_loss_is_a_dense_softmax_over_the_answer(user_llm, batch):
    history = {name: batch[f"history/{name}"] for name in ("item", "rating")}

    @jax.jit
    def predict(model):
        context = model.encode(history, history["item"] > 0)
        tokens = batch["decoder_input_tokens"]
        hidden, _ = model(tokens, batch["decoder_positions"], causal_mask(tokens > 0), context=context)
        return model.logits(hidden)

    expected, weights = dense_text_loss(predict, user_llm, batch), batch["decoder_loss_weights"]
    loss, weight, metrics = run(CONTEXTUALISED, user_llm, batch)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert weight == pytest.approx(weights.sum(), rel=1e-6)
    assert metrics == {"loss": (loss, weight), "dropped_events": (batch["dropped_events"].sum(), 16)}


def test_the_contextualised_loss_reads_the_users_own_history(user_llm, batch):
    other = {key: np.roll(value, 1, axis=0) if "history" in key else value for key, value in batch.items()}
    assert abs(run(CONTEXTUALISED, user_llm, other)[0] - run(CONTEXTUALISED, user_llm, batch)[0]) > 0.01


def test_dropped_items_are_no_class_of_the_softmax(encoder, batch):
    dropped = np.isin(np.arange(12), [3, 7])
    kept = {name: np.where(dropped[ids], 1, ids) if name.endswith("item") else ids for name, ids in batch.items()}
    graphdef, values, buffers = parameters.split(encoder)

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(values, objective):
        return jax.grad(lambda values: objective(parameters.merge(graphdef, values, buffers), kept, None)[0])(values)

    table = gradient(values, autoregressive_objective(CHUNK, dropped))["embedding/item_VU"]
    assert not np.asarray(table)[dropped].any()
    assert np.asarray(gradient(values, AUTOREGRESSIVE)["embedding/item_VU"])[dropped].any()  # else trained down


def test_label_contexts_ask_for_the_label_in_place_of_the_user(lively, build_user_llm, batch):
    model = lively(functools.partial(build_user_llm, features=("item",)))
    everyone, half = contextualised_objective(CHUNK, 1.0), contextualised_objective(CHUNK, 0.5)
    keys = [jax.random.key(seed) for seed in range(2)]
    encoder, labels = model.encoder, batch["label/item"]

    @jax.jit
    def of_labels(model):
        table, scale = (np.float32(1) * x for x in (encoder.embedding.item_VU[...], encoder.final_norm.scale_D[...]))
        vectors = table[labels]
        states = vectors / jnp.sqrt((vectors**2).mean(axis=-1, keepdims=True) + 1e-6) * scale
        context = model.connector.context(states[:, None], jnp.ones((len(labels), 1), bool))
        tokens = batch["decoder_input_tokens"]
        hidden, _ = model(tokens, batch["decoder_positions"], causal_mask(tokens > 0), context=context)
        return model.logits(hidden)

    expected = dense_text_loss(of_labels, model, batch)
    plain = run(CONTEXTUALISED, model, batch)[0]
    assert run(everyone, model, batch, keys[0])[0] == pytest.approx(expected, rel=1e-5)
    assert run(everyone, model, batch)[0] == plain  # no validation has label contexts
    items = {name: values for name, values in batch.items() if name.startswith(("decoder", "prompt"))}
    assert run(CONTEXTUALISED, model, {**items, "label/item": labels})[0] == pytest.approx(expected, rel=1e-5)
    some = [run(half, model, batch, key)[0] for key in keys]
    assert len({plain, expected, *some}) == 4
    assert run(half, model, batch, keys[0])[0] == some[0]


@pytest.mark.parametrize("newest", [0, 1, 3])
def test_several_texts_of_a_history_each_read_it_up_to_their_event(lively, build_user_llm, batch, newest):
    user_llm = lively(build_user_llm)
    user_llm.newest = newest
    names = ("decoder_input_tokens", "decoder_target_tokens", "decoder_positions", "decoder_loss_weights")
    names += ("prompt_tokens", "prompt_lengths", "dropped_events")
    several = {name: values.reshape(8, 2, *values.shape[1:]) if name in names else values[:8]
               for name, values in batch.items()}  # fmt: skip
    several["target/item"] = np.tile(batch["label/item"][:8, None], 2)
    history = {name: batch[f"history/{name}"][:8] for name in ("item", "rating")}
    expected = 0.0
    for text in range(2):
        slots, last = np.arange(history["item"].shape[1]), history["item"].shape[1] - 2 + text
        mask = (history["item"] > 0) & (slots <= last) & (slots > last - (newest or 99))

        @jax.jit
        def predict(model, tokens, positions, mask):
            embeddings = model.encoder(history, history["item"] > 0)
            hidden, _ = model(
                tokens, positions, causal_mask(tokens > 0), context=model.connector.context(embeddings, mask)
            )
            return model.logits(hidden)

        own = {name: several[name][:, text] for name in names}
        expected += dense_text_loss(predict, user_llm, own, own["decoder_input_tokens"], own["decoder_positions"], mask)
    loss, weight, _ = run(CONTEXTUALISED, user_llm, several)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert weight == pytest.approx(batch["decoder_loss_weights"].sum(), rel=1e-6)


def test_texts_learnt_up_to_one_token_are_those_whose_other_tokens_have_no_weight(user_llm, batch, with_first_tokens):
    expected, found = (run(CONTEXTUALISED, user_llm, one) for one in with_first_tokens(batch))
    assert found[1] == expected[1] < batch["decoder_loss_weights"].sum()
    assert found[0] == pytest.approx(expected[0], rel=1e-5)


def test_dropout_of_the_encoder_may_be_left_out(lively, build_user_llm, batch):
    model, key = lively(functools.partial(build_user_llm, dropout=0.5)), jax.random.key(0)
    calm = contextualised_objective(CHUNK, encoder_dropout=False)
    plain = run(CONTEXTUALISED, model, batch)[0]
    assert run(calm, model, batch, key)[0] == plain != run(CONTEXTUALISED, model, batch, key)[0]


def test_tokens_behind_a_text_say_nothing(user_llm, batch):
    tokens = batch["decoder_input_tokens"]
    filled = {**batch, "decoder_input_tokens": np.where(tokens == 0, 3, tokens)}
    assert (filled["decoder_input_tokens"] != tokens).any()
    assert run(CONTEXTUALISED, user_llm, filled)[0] == pytest.approx(run(CONTEXTUALISED, user_llm, batch)[0], rel=1e-6)


def test_with_shut_gates_it_is_the_text_objective(user_llm, batch):
    graphdef, values, buffers = parameters.split(user_llm)
    values = {path: value * 0 if path.endswith("_gate_D") else value for path, value in values.items()}
    shut = parameters.merge(graphdef, values, buffers)
    texts = {key: value for key, value in batch.items() if key.startswith("decoder_")}
    alone = run(text_objective(CHUNK), user_llm.language_model, texts)
    assert run(CONTEXTUALISED, shut, batch)[0] == pytest.approx(alone[0], rel=1e-6)
    assert abs(run(CONTEXTUALISED, user_llm, batch)[0] - alone[0]) > 0.01


def test_without_an_encoder_it_is_the_text_objective(user_llm, batch):
    alone = UserLLM(None, None, None, user_llm.language_model)
    texts = {key: value for key, value in batch.items() if key.startswith("decoder_")}
    text_loss = run(text_objective(CHUNK), user_llm.language_model, texts)
    assert run(CONTEXTUALISED, alone, batch)[0] == pytest.approx(text_loss[0], rel=1e-6)


@both
def test_rows_that_fill_a_batch_change_nothing(name, request, batch):
    """The same shape throughout: rows of weight 0 may hold anything."""
    model, objective = request.getfixturevalue(name), OBJECTIVES[name]
    weight = np.repeat(np.float32([1, 0]), [10, 6])
    other = {key: np.concatenate([value[:10], value[:6]]) for key, value in batch.items()}
    padded = run(objective, model, {**batch, "weight": weight})
    assert padded == run(objective, model, {**other, "weight": weight})
    assert padded[0] == pytest.approx(run(objective, model, {key: v[:10] for key, v in batch.items()})[0], rel=1e-5)


@both
def test_the_sums_of_two_halves_are_those_of_the_whole(name, request, batch):
    model, objective = request.getfixturevalue(name), OBJECTIVES[name]
    halves = [
        run(objective, model, {key: value[rows] for key, value in batch.items()}) for rows in np.split(np.arange(16), 2)
    ]
    total = jax.tree.map(lambda a, b: a + b, *halves)
    jax.tree.map(
        lambda got, whole: np.testing.assert_allclose(got, whole, rtol=1e-5), total, run(objective, model, batch)
    )


@both
def test_a_key_turns_dropout_on(name, request, lively, build_encoder, build_user_llm, batch):
    build = {"encoder": build_encoder, "user_llm": build_user_llm}[name]
    model, objective = lively(functools.partial(build, dropout=0.5)), OBJECTIVES[name]
    quiet = run(objective, model, batch)
    assert quiet == run(objective, request.getfixturevalue(name), batch)
    noisy = {run(objective, model, batch, jax.random.key(seed))[0] for seed in (0, 0, 1)}
    assert len(noisy) == 2
    assert quiet[0] not in noisy


class Stream:
    """One batch, again and again."""

    def __init__(self, batch):
        self.batch = batch

    def whole_batch(self, step):
        return self.batch


def soft_prompted(rngs, build_encoder):
    llm = LanguageModelConfig(vocab_size=23, num_layers=1, width=12, num_heads=2, num_kv_heads=1, head_dim=6, hidden=16)
    return UserLLM(
        build_encoder(rngs), None, SoftPrompt(SoftPromptConfig(2), llm, 8, rngs=rngs), LanguageModel(llm, rngs=rngs)
    )


@pytest.mark.parametrize("cut", [(1, 1), (3, 1), (1, 3)])
@pytest.mark.parametrize("kind", ["cross_attention", "soft_prompt", "text"])
def test_texts_in_groups_have_the_loss_and_gradients_of_the_whole(kind, cut, lively, user_llm, build_encoder, batch):
    objective, model = CONTEXTUALISED, user_llm
    if kind == "soft_prompt":
        model = lively(functools.partial(soft_prompted, build_encoder=build_encoder))
    if kind == "text":
        objective, model = text_objective(CHUNK), user_llm.language_model
        batch = {name: values for name, values in batch.items() if name.startswith("decoder_")}
    width = int(np.sort(text_lengths(batch))[16 * cut[0] // sum(cut) - 1])
    grouped = ByLength(Stream(batch), Cut(*cut, width)).group(batch)
    assert grouped["texts"][0]["decoder_input_tokens"].shape == (16 * cut[0] // sum(cut), width)
    assert width < batch["decoder_input_tokens"].shape[1]
    assert_same_step(objective, model, grouped, batch)


def test_on_several_devices_too(user_llm, batch):
    grouped = ByLength(Stream(batch), Cut(1, 1, int(np.sort(text_lengths(batch))[7]))).group(batch)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(4, 1, 1), AXES)
    assert_same_step(CONTEXTUALISED, user_llm, put_batch(grouped, mesh), batch)


def assert_same_step(objective, model, grouped, batch):
    graphdef, values, buffers = parameters.split(model)

    @jax.jit
    @jax.value_and_grad
    def step(values, batch):
        total, weight, _ = objective(parameters.merge(graphdef, values, buffers), batch, None)
        return total / weight

    (loss, gradients), (expected, expected_gradients) = step(values, grouped), step(values, batch)
    assert loss == pytest.approx(float(expected), rel=1e-6)
    for path, gradient in expected_gradients.items():
        np.testing.assert_allclose(gradients[path], gradient, rtol=1e-4, atol=1e-6, err_msg=path)

"""Ranks of whole sources against a loop over users, and what each row of the table may and may not see."""

import jax
import numpy as np
import pytest

from user_llm.decoding.beam import BeamResult, beam_search
from user_llm.evaluation.evaluator import (
    ShuffledContexts,
    Subset,
    encoder_scores,
    mean_metrics,
    rank_by_beams,
    rank_by_scores,
    user_llm_beams,
    user_llm_scores,
)
from user_llm.parallel.mesh import make_mesh, one_device
from user_llm.training.objectives import autoregressive_objective

ITEMS, EOS = 12, 2
BATCH = 4


@pytest.fixture(scope="module")
def everyone(windows):
    return windows.gather(np.arange(len(windows)))


@pytest.mark.parametrize("exclude_history", [False, True])
def test_ranks_by_scores_are_those_of_a_loop_over_users(windows, everyone, exclude_history):
    table = np.random.default_rng(1).integers(0, 4, (len(windows), ITEMS + 1)).astype(np.float32)  # many ties
    table[:, 0] = -np.inf
    ranks, items = rank_by_scores(
        lambda batch: table[batch["user"]], windows, batch_size=BATCH, exclude_history=exclude_history
    )
    expected = []
    for scores, label, history, best in zip(
        table, everyone["label/item"], everyone["history/item"], items, strict=True
    ):
        seen = set(history) if exclude_history else set()
        others = [item for item in range(1, ITEMS + 1) if item != label and item not in seen]
        expected.append(1 + sum(scores[item] >= scores[label] for item in others))
        descending = sorted(scores[[*others, label]], reverse=True)
        count = min(len(best), len(descending))
        np.testing.assert_array_equal(scores[best[:count]], descending[:count])
    np.testing.assert_array_equal(ranks, expected)


def test_ranks_by_beams_put_a_label_behind_the_titles_it_shares_tokens_with(windows, everyone, trie):
    """Items 2, 5 and 9 are one hypothesis, which beams call 2; 3 and 8 another."""
    groups = {2: [2, 5, 9], 5: [2, 5, 9], 9: [2, 5, 9], 3: [3, 8], 8: [3, 8]}
    distinct = [item for item in range(1, ITEMS + 1) if item == groups.get(item, [item])[0]]
    generator = np.random.default_rng(2)
    found = np.array([generator.permutation(distinct)[:6] for _ in range(len(windows))])
    found[3, 2:] = 0  # a user with two hypotheses only

    def beams(batch):
        return BeamResult(None, None, found[batch["user"]]), None

    ranks, items = rank_by_beams(beams, windows, trie=trie, batch_size=BATCH, description="")
    np.testing.assert_array_equal(items, found)
    expected = []
    for row, label in zip(found.tolist(), everyone["label/item"], strict=True):
        group = groups.get(label, [label])
        expected.append(row.index(group[0]) + len(group) if group[0] in row else np.inf)
    np.testing.assert_array_equal(ranks, expected)
    labels = set(everyone["label/item"])
    assert labels & {5, 8, 9}
    assert {np.isinf(rank) for rank in ranks} == {True, False}

    def free(batch):  # beams that know no items: their tokens are read
        return BeamResult(found[batch["user"]][..., None] + 100, None, np.zeros((BATCH, 6), int)), excluded

    def read_free():
        return rank_by_beams(
            free, windows, trie=trie, batch_size=BATCH, description="", read=lambda tokens: tokens[..., 0] - 100
        )

    excluded = np.zeros((BATCH, 1), int)
    read = read_free()
    np.testing.assert_array_equal(read[0], ranks)
    np.testing.assert_array_equal(read[1], found)
    excluded[:] = 4  # seen: those behind it move up
    for row, before in zip(read_free()[1].tolist(), found.tolist(), strict=True):
        kept = [item for item in before if item not in (0, 4)]
        assert row == kept + [0] * (6 - len(kept))


@pytest.mark.parametrize("count", [2, 3, 7, 8])
def test_shuffled_contexts_give_nobody_their_own_history(make_windows, count):
    windows = make_windows(count)
    plain, shuffled = (source.gather(np.arange(count)) for source in (windows, ShuffledContexts(windows)))
    for key, value in plain.items():
        np.testing.assert_array_equal(shuffled[key], value)
    owners = [np.flatnonzero((plain["history/item"] == row).all(axis=1)).tolist() for row in shuffled["context/item"]]
    givers = [owner for (owner,) in owners]
    assert sorted(givers) == list(range(count))
    assert all(owner != user for user, owner in enumerate(givers))
    np.testing.assert_array_equal(shuffled["context/rating"], plain["history/rating"][givers])
    # Whose history it is does not depend on the batch that asks.
    assert len(ShuffledContexts(windows)) == count
    one = ShuffledContexts(windows).gather(np.array([count - 1]))
    np.testing.assert_array_equal(one["context/item"][0], shuffled["context/item"][-1])


@pytest.mark.parametrize(("most", "expected"), [(0, 11), (4, 4), (1, 1), (11, 11), (50, 11)])
def test_a_subset_is_spread_evenly(windows, everyone, most, expected):
    subset = Subset.evenly(windows, most)
    assert len(subset) == expected
    users = subset.gather(np.arange(expected))["user"]
    gaps = np.diff(users)
    assert users[0] == 0
    assert (gaps > 0).all()
    if expected > 1:
        assert users[-1] == 10
        assert gaps.max() - gaps.min() <= 1
    chosen = subset.gather(np.array([expected - 1]))
    np.testing.assert_array_equal(chosen["history/item"][0], everyone["history/item"][users[-1]])


def test_the_encoders_scores_are_its_logits_after_the_newest_event(encoder_parts, everyone):
    model = encoder_parts.model
    history = {name: everyone[f"history/{name}"] for name in ("item", "rating")}
    embeddings = jax.jit(model)(history, history["item"] > 0)
    expected = (
        np.asarray(embeddings[:, -1]) @ np.asarray(model.item_head_UU[...]) @ np.asarray(model.feature_table("item")).T
    )
    scores = encoder_scores(encoder_parts.graphdef, encoder_parts.buffers, one_device())(encoder_parts.values, everyone)
    np.testing.assert_allclose(scores[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-4)
    assert (np.asarray(scores[:, 0]) == -np.inf).all()


def searched(parts, trie, batch, **options):
    options = dict(num_beams=5, max_steps=4, exclude_history=False) | options
    arguments = (parts.graphdef, parts.values, parts.buffers, one_device())
    return jax.tree.map(np.asarray, user_llm_beams(*arguments, trie=trie, eos_id=EOS, **options)(batch)[0])


def without_label(trie, batch):
    """A user's own history, but what cannot be told from the label: that stays an answer."""
    canonical = np.asarray(trie.canonical_item)
    history, label = batch["history/item"], batch["label/item"]
    return np.array(
        [
            [0 if canonical[item] == canonical[right] else item for item in row]
            for row, right in zip(history, label, strict=True)
        ]
    )


def expected_beams(model, prompts, context, trie, excluded=None):
    result = beam_search(
        model, prompts, context, num_beams=5, max_steps=4, eos_id=EOS, trie=trie, excluded_items=excluded
    )
    return jax.tree.map(np.asarray, result)


def assert_same(result, expected):
    np.testing.assert_array_equal(result.tokens, expected.tokens)
    np.testing.assert_array_equal(result.items, expected.items)
    np.testing.assert_allclose(result.scores, expected.scores, atol=1e-5)


def context_of(parts, item, rating):
    return jax.jit(lambda model: model.encode({"item": item, "rating": rating}, item > 0))(parts.model)


def test_without_context_it_is_the_language_model_alone(user_llm_parts, trie, everyone):
    alone = expected_beams(user_llm_parts.model.language_model, everyone["prompt_tokens"], None, trie)
    assert_same(searched(user_llm_parts, trie, everyone, with_context=False), alone)
    assert np.abs(searched(user_llm_parts, trie, everyone).scores - alone.scores).max() > 0.1


def test_beams_read_each_users_history_and_leave_it_out_of_the_answers(user_llm_parts, trie, everyone):
    item, rating, prompts = (everyone[key] for key in ("history/item", "history/rating", "prompt_tokens"))
    context = context_of(user_llm_parts, item, rating)
    seen = searched(user_llm_parts, trie, everyone)
    assert_same(seen, expected_beams(user_llm_parts.model, prompts, context, trie))
    unseen = searched(user_llm_parts, trie, everyone, exclude_history=True)
    assert_same(unseen, expected_beams(user_llm_parts.model, prompts, context, trie, without_label(trie, everyone)))
    item, canonical = without_label(trie, everyone), np.asarray(trie.canonical_item)

    def answered_again(result):
        return [
            bool(set(row[row > 0]) & set(canonical[history])) for row, history in zip(result.items, item, strict=True)
        ]

    assert any(answered_again(seen))
    assert not any(answered_again(unseen))


def test_a_shuffled_context_is_another_users_and_the_exclusion_the_users_own(user_llm_parts, trie, windows, everyone):
    batch = ShuffledContexts(windows).gather(np.arange(len(windows)))
    context = context_of(user_llm_parts, batch["context/item"], batch["context/rating"])
    result = searched(user_llm_parts, trie, batch, exclude_history=True)
    own = without_label(trie, everyone)
    assert_same(result, expected_beams(user_llm_parts.model, everyone["prompt_tokens"], context, trie, own))
    assert np.abs(result.scores - searched(user_llm_parts, trie, everyone, exclude_history=True).scores).max() > 0.01


def test_exact_scores_rank_as_wide_beams_do(user_llm_parts, trie, everyone):
    arguments = (user_llm_parts.graphdef, user_llm_parts.values, user_llm_parts.buffers, one_device())
    scores = np.asarray(user_llm_scores(*arguments, trie=trie, eos_id=EOS)(everyone))
    wide = searched(user_llm_parts, trie, everyone, num_beams=ITEMS)
    for row, items, values in zip(scores, wide.items, wide.scores, strict=True):
        found = items > 0
        np.testing.assert_allclose(row[items[found]], values[found], atol=1e-4)
        assert set(items[found]) == set(np.asarray(trie.canonical_item)[1:])


@pytest.mark.parametrize("batch_size", [8, 16])
def test_mean_metrics_are_the_objective_over_all_windows_at_once(encoder_parts, windows, everyone, batch_size):
    """In batches over 8 devices, the last one padded."""
    objective = autoregressive_objective(chunk_rows=16)
    _, _, metrics = jax.jit(objective)(encoder_parts.model, everyone, None)
    expected = {name: float(total / weight) for name, (total, weight) in metrics.items()}
    mesh = make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    values, buffers = jax.device_get((encoder_parts.values, encoder_parts.buffers))
    evaluate = mean_metrics(objective, encoder_parts.graphdef, buffers, windows, batch_size, mesh)
    assert evaluate(values) == pytest.approx(expected, rel=1e-5)
    assert set(expected) == {"loss", "loss/item", "loss/category", "loss/rating"}

"""Ranks of whole sources against a loop over users, and what each row of the table may and may not see."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from user_llm.decoding.beam import BeamResult, beam_search
from user_llm.decoding.generate import generate
from user_llm.evaluation.evaluator import (
    TOP,
    ShuffledContexts,
    Subset,
    encoder_scores,
    mean_metrics,
    rank_by_beams,
    rank_by_scores,
    user_llm_beams,
    user_llm_scores,
    user_llm_texts,
    write_texts,
)
from user_llm.parallel import processes
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
    before = table.copy()
    ranks, best = rank_by_scores(
        lambda batch: table[batch["user"]], windows, batch_size=BATCH, exclude_history=exclude_history
    )
    users = zip(table, everyone["label/item"], everyone["history/item"], ranks, best, strict=True)
    for scores, label, history, rank, found in users:
        seen = set(history) - {label} if exclude_history else set()
        rankable = [item for item in range(1, ITEMS + 1) if item not in seen]
        assert rank == sum(scores[item] >= scores[label] for item in rankable)
        answers = [item for item in found if item]
        assert len(answers) == min(TOP, len(rankable))
        assert found.tolist() == answers + [0] * (TOP - len(answers))
        assert set(answers) <= set(rankable)
        assert scores[answers].tolist() == sorted(scores[rankable], reverse=True)[: len(answers)]
    np.testing.assert_array_equal(table, before)


def test_several_processes_end_an_evaluation_between_the_same_two_batches(windows, monkeypatch):
    numbers, seen = [], []
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(
        processes.multihost_utils,
        "reached_preemption_sync_point",
        lambda number: numbers.append(number) or len(numbers) == 2,
    )
    with pytest.raises(processes.Preempted):
        rank_by_scores(
            lambda batch: seen.append(batch) or np.zeros((BATCH, ITEMS + 1), np.float32),
            windows,
            batch_size=BATCH,
            exclude_history=False,
        )
    assert len(seen) == 1
    assert numbers[1] == numbers[0] + 1


GROUPS = {2: [2, 5, 9], 5: [2, 5, 9], 9: [2, 5, 9], 3: [3, 8], 8: [3, 8]}  # titles of equal tokens
DISTINCT = [item for item in range(1, ITEMS + 1) if item == GROUPS.get(item, [item])[0]]


@pytest.fixture(scope="module")
def found(windows):
    """Six hypotheses a user, and one user with two."""
    generator = np.random.default_rng(2)
    found = np.array([generator.permutation(DISTINCT)[:6] for _ in range(len(windows))])
    found[3, 2:] = 0
    return found


def test_ranks_by_beams_put_a_label_behind_the_titles_it_shares_tokens_with(windows, everyone, trie, found):
    def beams(batch):
        return BeamResult(None, None, found[batch["user"]]), batch["history/item"]

    ranks, items = rank_by_beams(beams, windows, trie=trie, batch_size=BATCH, description="")
    np.testing.assert_array_equal(items, found)
    for row, label, rank in zip(found.tolist(), everyone["label/item"], ranks, strict=True):
        group = GROUPS.get(label, [label])
        assert rank == (row.index(group[0]) + len(group) if group[0] in row else np.inf)
    assert set(everyone["label/item"]) & {5, 8, 9}
    assert set(np.isinf(ranks)) == {True, False}


def test_free_beams_are_read_and_what_was_seen_is_taken_out(windows, everyone, trie, found):
    def beams(batch):  # beams that know no items
        tokens = found[batch["user"]][..., None] + 100
        excluded = np.where(batch["user"][:, None] % 2, found[batch["user"]][:, [0, 3]], 0)
        return BeamResult(tokens, None, np.zeros(tokens.shape[:2], int)), excluded

    ranks, items = rank_by_beams(
        beams, windows, trie=trie, batch_size=BATCH, description="", read=lambda tokens: tokens[..., 0] - 100
    )
    for user, (row, label, rank) in enumerate(zip(items.tolist(), everyone["label/item"], ranks, strict=True)):
        left = found[user].tolist() if user % 2 == 0 else found[user, [1, 2, 4, 5]].tolist()
        answers = [item for item in left if item]
        assert row == answers + [0] * (6 - len(answers))
        group = GROUPS.get(label, [label])
        assert rank == (answers.index(group[0]) + len(group) if group[0] in answers else np.inf)


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
    """(beams, the items that were no answer)"""
    options = dict(num_beams=5, max_steps=4, exclude_history=False) | options
    arguments = (parts.graphdef, parts.values, parts.buffers, one_device())
    result, excluded = user_llm_beams(*arguments, trie=trie, eos_id=EOS, **options)(batch)
    return jax.tree.map(np.asarray, result), excluded


def expected_beams(model, batch, context, trie, excluded=None):
    prompts = batch["prompt_tokens"], batch["prompt_lengths"]
    result = beam_search(
        model, *prompts, context, num_beams=5, max_steps=4, eos_id=EOS, trie=trie, excluded_items=excluded
    )
    return jax.tree.map(np.asarray, result)


def assert_same(result, expected):
    np.testing.assert_array_equal(result.tokens, expected.tokens)
    np.testing.assert_array_equal(result.items, expected.items)
    np.testing.assert_allclose(result.scores, expected.scores, atol=1e-5)


def context_of(parts, item, rating):
    return jax.jit(lambda model: model.encode({"item": item, "rating": rating}, item > 0))(parts.model)


def unanswerable(batch):
    """Each user's history, but for items that share the label's title: a user may come back to one."""
    kept = [GROUPS.get(label, [label]) for label in batch["label/item"]]
    rows = zip(batch["history/item"], kept, strict=True)
    return np.array([[0 if item in group else first(item) for item in history] for history, group in rows], np.int32)


def first(item):
    """The item that stands for all whose titles have the same tokens."""
    return GROUPS.get(item, [item])[0]


def test_without_context_it_is_the_language_model_alone(user_llm_parts, trie, everyone):
    alone = expected_beams(user_llm_parts.model.language_model, everyone, None, trie)
    result, excluded = searched(user_llm_parts, trie, everyone, with_context=False)
    assert_same(result, alone)
    assert not excluded.any()
    assert np.abs(searched(user_llm_parts, trie, everyone)[0].scores - alone.scores).max() > 0.1


def test_a_model_without_an_encoder_answers_from_the_prompt(text_prompt_parts, trie, everyone):
    alone = expected_beams(text_prompt_parts.model.language_model, everyone, None, trie)
    assert_same(searched(text_prompt_parts, trie, everyone)[0], alone)
    unseen, excluded = searched(text_prompt_parts, trie, everyone, exclude_history=True)
    np.testing.assert_array_equal(excluded, unanswerable(everyone))
    assert_same(unseen, expected_beams(text_prompt_parts.model.language_model, everyone, None, trie, excluded))


def test_beams_read_each_users_history_and_leave_it_out_of_the_answers(user_llm_parts, trie, everyone):
    # One user comes back to an item, another to one whose title is spelled like that of an item they know.
    batch = {**everyone, "history/item": everyone["history/item"].copy()}
    batch["label/item"] = batch["label/item"].copy()
    batch["label/item"][0] = batch["history/item"][0, -1]
    batch["label/item"][1], batch["history/item"][1, -1] = 9, 5
    item = batch["history/item"]
    context = context_of(user_llm_parts, item, batch["history/rating"])
    seen, _ = searched(user_llm_parts, trie, batch)
    assert_same(seen, expected_beams(user_llm_parts.model, batch, context, trie))
    unseen, excluded = searched(user_llm_parts, trie, batch, exclude_history=True)
    np.testing.assert_array_equal(excluded, unanswerable(batch))
    assert ((item > 0) & (excluded == 0)).any(axis=1)[:2].all()
    assert_same(unseen, expected_beams(user_llm_parts.model, batch, context, trie, excluded))
    canonical = np.asarray(trie.canonical_item)

    def answered_again(result):
        rows = zip(result.items, excluded, strict=True)
        return [bool(set(found[found > 0]) & set(canonical[banned])) for found, banned in rows]

    assert any(answered_again(seen))
    assert not any(answered_again(unseen))
    # Someone to recommend to has no label: nothing of their history comes out.
    nobody = {key: value for key, value in batch.items() if not key.startswith("label/")}
    excluded = searched(user_llm_parts, trie, nobody, exclude_history=True)[1]
    np.testing.assert_array_equal(excluded, np.vectorize(first)(item))


def test_a_shuffled_context_is_another_users_and_the_exclusion_the_users_own(user_llm_parts, trie, windows, everyone):
    batch = ShuffledContexts(windows).gather(np.arange(len(windows)))
    context = context_of(user_llm_parts, batch["context/item"], batch["context/rating"])
    result, excluded = searched(user_llm_parts, trie, batch, exclude_history=True)
    np.testing.assert_array_equal(excluded, unanswerable(everyone))
    assert_same(result, expected_beams(user_llm_parts.model, everyone, context, trie, excluded))
    own, _ = searched(user_llm_parts, trie, everyone, exclude_history=True)
    assert np.abs(result.scores - own.scores).max() > 0.01


@pytest.mark.parametrize("with_context", [False, True])
def test_exact_scores_are_those_of_beams_as_many_as_titles(user_llm_parts, trie, everyone, with_context):
    parts = (user_llm_parts.graphdef, user_llm_parts.values, user_llm_parts.buffers, one_device())
    scores = np.asarray(user_llm_scores(*parts, trie=trie, eos_id=EOS, with_context=with_context)(everyone))
    wide, _ = searched(user_llm_parts, trie, everyone, num_beams=len(DISTINCT), with_context=with_context)
    assert np.sort(wide.items, axis=1).tolist() == [DISTINCT] * len(everyone["user"])
    np.testing.assert_allclose(np.take_along_axis(scores, wide.items, axis=1), wide.scores, atol=1e-4)
    np.testing.assert_allclose(scores[:, [5, 9, 8]], scores[:, [2, 2, 3]], atol=1e-5)
    assert (scores[:, 0] == -np.inf).all()


@pytest.mark.parametrize("reads", ["own history", "another user's", "none"])
def test_texts_continue_the_prompt_for_the_user_they_are_about(user_llm_parts, windows, everyone, reads):
    """As long as asked for, greedily; whose events are read decides what is written."""
    batch = ShuffledContexts(windows).gather(np.arange(len(windows))) if reads == "another user's" else everyone
    parts = (user_llm_parts.graphdef, user_llm_parts.values, user_llm_parts.buffers, one_device())
    options = dict(eos_id=EOS, max_new_tokens=5)
    written = np.asarray(user_llm_texts(*parts, **options, with_context=reads != "none")(batch))
    prompts = everyone["prompt_tokens"], everyone["prompt_lengths"]
    of = "context" if reads == "another user's" else "history"
    context = context_of(user_llm_parts, batch[f"{of}/item"], batch[f"{of}/rating"])
    about_user = np.asarray(generate(user_llm_parts.model, *prompts, context, **options))
    about_nobody = np.asarray(generate(user_llm_parts.model.language_model, *prompts, None, **options))
    np.testing.assert_array_equal(written, about_nobody if reads == "none" else about_user)
    assert (about_user != about_nobody).any()
    assert written.shape == (len(windows), 5)


def test_texts_of_all_windows_are_read_up_to_their_end_without_the_batch_s_filler(windows):
    vocabulary = SimpleNamespace(
        eos_id=EOS,
        vocab_size=100,
        tokenizer=SimpleNamespace(decode=lambda rows: [f" {' '.join(map(str, row))} \n" for row in rows]),
    )
    ends = np.full(BATCH, EOS)
    texts = write_texts(
        lambda batch: np.stack([10 + batch["user"], 30 + batch["user"], ends, 50 + batch["user"]], axis=1),
        windows,
        vocabulary,
        batch_size=BATCH,
        description="",
    )
    assert texts == [f"{10 + user} {30 + user}" for user in range(len(windows))]


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

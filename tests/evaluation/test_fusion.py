"""Fused answers against a mix in NumPy of what each model says of every title."""

import numpy as np
import pytest

from user_llm.evaluation import fusion
from user_llm.evaluation.evaluator import rank_by_beams, rank_by_scores, user_llm_beams, user_llm_scores
from user_llm.evaluation.fusion import WEIGHTS, best_weight, fused_scores, log_prior, mean_of, share_of
from user_llm.evaluation.scores import ItemScores
from user_llm.evaluation.users import encoder_scores

EOS, ITEMS, BATCH = 2, 12, 4
UNTRAINED, FLOOR = [4, 11], 0.05


@pytest.fixture(scope="module")
def batch(windows):
    return windows.gather(np.arange(len(windows)))


def closed_items(batch, labels):
    return [{*items, 0} - {label} for items, label in zip(batch["history/item"], labels, strict=True)]


def expected_mix(llm_scores, logits, closed, title_of_item, weight):
    """float64 `[n, I+1]`, -inf where closed."""
    mixed = np.full(logits.shape, -np.inf)
    for row, shut in enumerate(closed):
        left = [item for item in range(1, ITEMS + 1) if item not in shut]
        new = [item for item in left if item in UNTRAINED]
        share = {item: np.exp(float(logits[row, item])) for item in left if item not in new}
        total = sum(share.values())
        p = {item: (1 - FLOOR * bool(new)) * value / total for item, value in share.items()}
        p |= {item: FLOOR / len(new) for item in new}
        for item in left:
            twins = sum(p[other] for other in left if title_of_item[other] == title_of_item[item])
            mixed[row, item] = weight * float(llm_scores[row, item]) + (1 - weight) * np.log(twins)
    return mixed


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_ranks_of_fused_beams_are_those_of_the_exact_mix(user_llm, encoder, windows, batch, trie, weight):
    prior = log_prior(encoder_scores(encoder), UNTRAINED, FLOOR)
    options = dict(trie=trie, eos_id=EOS, num_beams=10, max_steps=9, exclude_seen=True)
    beams = user_llm_beams(user_llm, prior=prior, weight=weight, **options)
    ranks, items = rank_by_beams(beams, windows, trie=trie, batch_size=BATCH, description="fused")
    llm = np.asarray(user_llm_scores(user_llm, trie=trie, eos_id=EOS)(batch).all())
    logits, labels = np.asarray(encoder_scores(encoder)(batch).all()), batch["label/item"]
    closed = closed_items(batch, labels)
    titles = np.asarray(trie.title_of_item)
    mixed = expected_mix(llm, logits, closed, titles, weight)
    for row, label in enumerate(labels):
        others = [item for item in range(1, ITEMS + 1) if item not in closed[row]]
        assert ranks[row] == sum(mixed[row, item] >= mixed[row, label] - 1e-5 for item in others)
        found = [item for item in items[row] if item]
        assert {titles[item] for item in found} == {titles[item] for item in others}
        assert len(found) == len({titles[item] for item in found})
        assert (np.diff(mixed[row, found]) < 1e-5).all()
    excluded = np.array([sorted(shut) + [0] * (8 - len(shut)) for shut in closed], np.int32)
    exact = np.asarray(
        fused_scores(user_llm_scores(user_llm, trie=trie, eos_id=EOS), prior, weight, trie)(batch, excluded)
    )
    np.testing.assert_allclose(exact, mixed, rtol=1e-4, atol=1e-4)


def test_among_the_likeliest_items_no_other_is_answered(user_llm, encoder, windows, batch, trie):
    prior = log_prior(encoder_scores(encoder), [], 0.0, within=2)
    options = dict(trie=trie, eos_id=EOS, num_beams=10, max_steps=9, exclude_seen=True)
    _, items = rank_by_beams(
        user_llm_beams(user_llm, prior=prior, **options), windows, trie=trie, batch_size=BATCH, description="reranked"
    )
    _, best = rank_by_scores(encoder_scores(encoder), windows, batch_size=BATCH, exclude_seen=True)
    titles = np.asarray(trie.title_of_item)
    for found, likeliest in zip(items, best, strict=True):
        assert {titles[item] for item in found if item} == {titles[item] for item in likeliest[:2]}


def test_two_encoders_are_the_mean_of_their_log_probabilities(batch):
    first, second = np.random.default_rng(0).normal(size=(2, 11, ITEMS + 1)).astype(np.float32)
    first[:, 0] = second[:, 0] = -np.inf
    scores = mean_of(lambda _: ItemScores.dense(first), lambda _: ItemScores.dense(second))(batch)
    each = [np.log(np.exp(x[:, 1:]) / np.exp(x[:, 1:]).sum(axis=1, keepdims=True)) for x in (first, second)]
    apart = np.asarray(scores.all())[:, 1:] - sum(each) / 2
    np.testing.assert_allclose(apart, np.tile(apart[:, :1], ITEMS), rtol=1e-5)  # a constant of each user
    assert scores.width == ITEMS + 1
    assert (np.asarray(scores.block(0, 3))[:, 0] == -np.inf).all()
    np.testing.assert_array_equal(scores.block(4, 3), np.asarray(scores.all())[:, 4:7])


def test_the_best_weight_is_that_of_the_best_figure_and_the_larger_of_two():
    weight, tried = best_weight(lambda w: -abs(w - 0.2))
    assert weight == 0.2
    assert tried == {f"{w:g}": -abs(w - 0.2) for w in WEIGHTS}
    assert best_weight(lambda w: 1.0)[0] == 1.0


def test_an_untrained_item_is_asked_for_as_often_as_on_validation():
    assert share_of([3, 5], np.array([1, 3, 5, 5])) == pytest.approx(3.5 / 5)
    assert 0 < share_of([3, 5], np.array([1, 1])) < 0.2


def test_room_for_further_items_changes_no_prior_and_no_program():
    random = np.random.default_rng(0)
    logits = ItemScores.dense(random.normal(size=(3, ITEMS + 1)).astype(np.float32))
    excluded = random.integers(0, ITEMS + 1, (3, 4))
    exact = np.asarray(log_prior(lambda _: logits, UNTRAINED, FLOOR)({}, excluded))
    room = np.asarray(log_prior(lambda _: logits, UNTRAINED, FLOOR, items=ITEMS + 9)({}, excluded))
    np.testing.assert_array_equal(room[:, : ITEMS + 1], exact)
    assert (room[:, ITEMS + 1 :] == -np.inf).all()
    made = fusion._log_prior._cache_size()
    later = log_prior(lambda _: logits, [*UNTRAINED, ITEMS + 1, ITEMS + 2], FLOOR, items=ITEMS + 9)({}, excluded)
    assert fusion._log_prior._cache_size() == made
    assert (np.asarray(later)[:, ITEMS + 1 : ITEMS + 3] > -np.inf).all()

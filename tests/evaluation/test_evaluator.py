"""Ranks of whole sources against a loop over users, and what each row of the table may and may not see."""

import functools
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from user_llm.data.vocabulary import Vocabulary
from user_llm.decoding.beam import BeamResult, beam_search
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.decoding.generate import generate
from user_llm.evaluation.evaluator import (
    ShuffledContexts,
    Subset,
    mean_metrics,
    rank_by_beams,
    rank_by_scores,
    user_llm_beams,
    user_llm_scores,
    user_llm_texts,
    write_texts,
)
from user_llm.evaluation.ranks import TOP
from user_llm.evaluation.scores import ItemScores
from user_llm.evaluation.users import encoder_scores
from user_llm.models.model import Model
from user_llm.parallel import processes
from user_llm.parallel.mesh import make_mesh
from user_llm.training.objectives import autoregressive_objective

ITEMS, EOS = 12, 2
BATCH = 4


@pytest.fixture(scope="module")
def everyone(windows):
    return windows.gather(np.arange(len(windows)))


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("beyond", [False, True])
def test_ranks_by_scores_are_those_of_a_loop_over_users(windows, everyone, exclude_seen, beyond):
    if beyond:  # users have met more than their history
        more = np.random.default_rng(2).integers(0, ITEMS + 1, (len(windows), 3))
        everyone = {**everyone, "seen/item": np.concatenate([more, everyone["history/item"]], axis=1)}
        windows = Fixed(**everyone)
    table = np.random.default_rng(1).integers(0, 4, (len(windows), ITEMS + 1)).astype(np.float32)  # many ties
    before = table.copy()
    ranks, best = rank_by_scores(
        lambda batch: ItemScores.dense(table[batch["user"]]), windows, batch_size=BATCH, exclude_seen=exclude_seen
    )
    met = everyone["seen/item" if beyond else "history/item"]
    for scores, label, items, rank, found in zip(table, everyone["label/item"], met, ranks, best, strict=True):
        seen = set(items) - {label} if exclude_seen else set()
        rankable = [item for item in range(1, ITEMS + 1) if item not in seen]
        assert rank == sum(scores[item] >= scores[label] for item in rankable)
        ranking = [item for _, item in sorted((-scores[item], item) for item in rankable)]  # of a tie, the lower item
        assert found.tolist() == (ranking + [0] * TOP)[:TOP]
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
            lambda batch: seen.append(batch) or ItemScores.dense(np.zeros((BATCH, ITEMS + 1), np.float32)),
            windows,
            batch_size=BATCH,
            exclude_seen=False,
        )
    assert len(seen) == 1
    assert numbers[1] == numbers[0] + 1


GROUPS = {2: [2, 5, 9], 5: [2, 5, 9], 9: [2, 5, 9], 3: [3, 8], 8: [3, 8]}  # titles of equal tokens
DISTINCT = [item for item in range(1, ITEMS + 1) if item == GROUPS.get(item, [item])[0]]


class Fixed:
    """A source of the rows of one batch."""

    def __init__(self, **batch):
        self.batch = {"user": np.arange(len(batch["label/item"])), **batch}

    def __len__(self):
        return len(self.batch["user"])

    def gather(self, ids):
        return {name: column[ids] for name, column in self.batch.items()}


def rank_of(scores, label, excluded):
    """The rule, item by item: all that may be answered and score at least as high stand before the label."""
    rank = 1
    for item in range(1, len(scores)):
        if item not in (label, *excluded) and scores[item] >= scores[label]:
            rank += 1
    return rank


@dataclass(frozen=True)
class Answers:
    """Users of a random catalogue whose items share titles, and the scores of all titles: many tie."""

    trie: CatalogueTrie
    titles: np.ndarray  # [I+1], token of each item's title
    scores: np.ndarray  # [n, I+1], of each item its title's
    windows: Fixed

    @classmethod
    def draw(cls, seed):
        random = np.random.default_rng(seed)
        titles = np.concatenate([[0], random.integers(3, random.integers(4, 20), ITEMS)])
        scores = random.integers(-3, 1, (BATCH, 20)).astype(np.float32)[:, titles]
        history = random.integers(0, ITEMS + 1, (BATCH, 6)).astype(np.int32)  # 0: padding; some items come twice
        trie = CatalogueTrie.build(titles[:, None], np.minimum(np.arange(ITEMS + 1), 1), EOS)
        label = random.integers(1, ITEMS + 1, BATCH)
        return cls(trie, titles, scores, Fixed(**{"history/item": history, "label/item": label}))

    def rows(self):
        """Of each user: scores [I+1], label, the items that are no answer."""
        batch = self.windows.batch
        for scores, label, history in zip(self.scores, batch["label/item"], batch["history/item"], strict=True):
            yield scores, label, set(history.tolist()) - {0, label}

    def beams(self, seed, *, free=False, drop=0):
        """All titles with an answer, best first, ties in any order, but for the last `drop`. Free beams know no items:
        they hold closed titles, and some of them twice."""
        random, found = np.random.default_rng(seed), []
        for scores, _, excluded in self.rows():
            answers = [item for item in range(1, len(scores)) if free or item not in excluded]
            lowest = {self.titles[item]: item for item in reversed(answers)}
            beams = [*lowest.values(), *(random.choice(answers, 3) if free else [])]
            random.shuffle(beams)
            found.append(sorted(beams, key=lambda item: -scores[item])[: len(beams) - drop])
        items = np.array([row + [0] * (ITEMS + 3 - len(row)) for row in found], np.int32)
        scores = np.where(items > 0, np.take_along_axis(self.scores, items, axis=1), -np.inf)

        def beams(batch):
            user = batch["user"]
            tokens = items[user][..., None]
            result = BeamResult(tokens, scores[user], np.zeros_like(items[user]) if free else items[user])
            return result, batch["history/item"]

        options = dict(read=lambda tokens: self.lowest[tokens[..., 0]]) if free else {}
        return rank_by_beams(beams, self.windows, trie=self.trie, batch_size=BATCH, description="", **options)

    @property
    def lowest(self):
        """The first item of each item's title [I+1]: what a title's words are read as."""
        return np.array([0, *(self.titles.tolist().index(title) for title in self.titles[1:])])


@pytest.mark.parametrize("free", [False, True])
def test_all_titles_as_beams_rank_as_the_scores_of_all_items_do(free):
    """Twins, ties, histories that hold a twin of the label or all of them, or the label itself."""
    met = Counter()
    for seed in range(200):
        answers = Answers.draw(seed)
        exact, _ = rank_by_scores(
            lambda batch, of=answers: ItemScores.dense(of.scores[batch["user"]]),
            answers.windows,
            batch_size=BATCH,
            exclude_seen=True,
        )
        ranks, items = answers.beams(seed, free=free)
        expected = [rank_of(*row) for row in answers.rows()]
        assert ranks.tolist() == exact.tolist() == expected, seed
        for (scores, label, excluded), found in zip(answers.rows(), items.tolist(), strict=True):
            named = [item for item in found if item]
            assert found == named + [0] * (len(found) - len(named))
            # Of each title the first item that is an answer, best first; nothing of a title without one.
            lowest = {answers.titles[item]: item for item in range(len(scores) - 1, 0, -1) if item not in excluded}
            assert sorted(named) == sorted(lowest.values())
            assert scores[named].tolist() == sorted(scores[named], reverse=True)
            twins = {item for item in range(1, len(scores)) if answers.titles[item] == answers.titles[label]} - {label}
            met["some twins of the label closed"] += bool(twins & excluded) and not twins <= excluded
            met["all twins of the label closed"] += bool(twins) and twins <= excluded
            met["ties"] += any(scores[item] == scores[label] for item in named if item not in (label, *twins))
    assert min(met[case] for case in met) > 20
    assert len(met) == 3


def test_a_label_that_no_beam_found_has_no_rank_and_the_others_keep_theirs():
    lost = 0
    for seed in range(40):
        answers = Answers.draw(seed)
        ranks, items = answers.beams(seed, drop=1)
        for (scores, label, excluded), rank, found in zip(answers.rows(), ranks, items.tolist(), strict=True):
            titles = {answers.titles[item] for item in found if item}
            kept = [item for item in range(1, len(scores)) if answers.titles[item] not in titles]
            expected = rank_of(scores, label, excluded | set(kept)) if label not in kept else np.inf
            assert rank == expected
            lost += label in kept
    assert 10 < lost < 150


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


def test_the_encoders_scores_are_its_logits_after_the_newest_event(encoder, everyone):
    model = encoder.module()
    history = {name: everyone[f"history/{name}"] for name in ("item", "rating")}
    embeddings = jax.jit(model)(history, history["item"] > 0)
    expected = (
        np.asarray(embeddings[:, -1]) @ np.asarray(model.item_head_UU[...]) @ np.asarray(model.feature_table("item")).T
    )
    scores = encoder_scores(encoder)(everyone).all()
    np.testing.assert_allclose(scores[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-4)
    assert (np.asarray(scores[:, 0]) == -np.inf).all()


def searched(model, trie, batch, **options):
    """(beams, the items that were no answer)"""
    options = dict(num_beams=5, max_steps=4, exclude_seen=False) | options
    result, excluded = user_llm_beams(model, trie=trie, eos_id=EOS, **options)(batch)
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


def context_of(model, item, rating):
    return jax.jit(lambda module: module.encode({"item": item, "rating": rating}, item > 0))(model.module())


def unanswerable(batch):
    """Each user's history, but for the label: a user may come back to it."""
    rows = zip(batch["history/item"], batch["label/item"], strict=True)
    return np.array([[0 if item == label else item for item in history] for history, label in rows], np.int32)


def test_without_context_it_is_the_language_model_alone(user_llm, trie, everyone):
    alone = expected_beams(user_llm.module().language_model, everyone, None, trie)
    result, excluded = searched(user_llm, trie, everyone, with_context=False)
    assert_same(result, alone)
    assert not excluded.any()
    assert np.abs(searched(user_llm, trie, everyone)[0].scores - alone.scores).max() > 0.1
    scores = np.asarray(user_llm_scores(user_llm, trie=trie, eos_id=EOS, with_context=False)(everyone).all())
    np.testing.assert_allclose(np.take_along_axis(scores, alone.items, axis=1), alone.scores, atol=1e-4)


def test_a_model_without_an_encoder_answers_from_the_prompt(text_prompt, trie, everyone):
    alone = expected_beams(text_prompt.module().language_model, everyone, None, trie)
    assert_same(searched(text_prompt, trie, everyone)[0], alone)
    unseen, excluded = searched(text_prompt, trie, everyone, exclude_seen=True)
    np.testing.assert_array_equal(excluded, unanswerable(everyone))
    assert_same(unseen, expected_beams(text_prompt.module().language_model, everyone, None, trie, excluded))


def test_beams_read_each_users_history_and_leave_it_out_of_the_answers(user_llm, trie, everyone):
    # One user comes back to an item, another to one whose title is spelled like that of an item they know.
    batch = {**everyone, "history/item": everyone["history/item"].copy()}
    batch["label/item"] = batch["label/item"].copy()
    batch["label/item"][0] = batch["history/item"][0, -1]
    batch["label/item"][1], batch["history/item"][1, -1] = 9, 5
    item = batch["history/item"]
    context = context_of(user_llm, item, batch["history/rating"])
    seen, _ = searched(user_llm, trie, batch)
    assert_same(seen, expected_beams(user_llm.module(), batch, context, trie))
    unseen, excluded = searched(user_llm, trie, batch, exclude_seen=True)
    np.testing.assert_array_equal(excluded, unanswerable(batch))
    assert ((item > 0) & (excluded == 0)).any(axis=1)[0]
    assert_same(unseen, expected_beams(user_llm.module(), batch, context, trie, excluded))

    def answered_again(result):
        rows = zip(result.items, excluded, strict=True)
        return [bool(set(found[found > 0]) & set(banned)) for found, banned in rows]

    assert any(answered_again(seen))
    assert not any(answered_again(unseen))
    # Someone to recommend to has no label: nothing of their history comes out.
    nobody = {key: value for key, value in batch.items() if not key.startswith("label/")}
    excluded = searched(user_llm, trie, nobody, exclude_seen=True)[1]
    np.testing.assert_array_equal(excluded, item)
    more = {**nobody, "seen/item": np.concatenate([np.full((len(item), 1), 7), item], axis=1)}
    np.testing.assert_array_equal(searched(user_llm, trie, more, exclude_seen=True)[1], more["seen/item"])


def test_a_shuffled_context_is_another_users_and_the_exclusion_the_users_own(user_llm, trie, windows, everyone):
    batch = ShuffledContexts(windows).gather(np.arange(len(windows)))
    context = context_of(user_llm, batch["context/item"], batch["context/rating"])
    result, excluded = searched(user_llm, trie, batch, exclude_seen=True)
    np.testing.assert_array_equal(excluded, unanswerable(everyone))
    assert_same(result, expected_beams(user_llm.module(), everyone, context, trie, excluded))
    own, _ = searched(user_llm, trie, everyone, exclude_seen=True)
    assert np.abs(result.scores - own.scores).max() > 0.01


def test_a_model_ranks_labels_alike_by_beams_and_by_the_scores_of_all_titles(user_llm, trie, everyone):
    history, label = everyone["history/item"].copy(), everyone["label/item"].copy()
    label[:3] = history[0, -1], 9, 8  # one comes back; twins of the others: both closed, the one there is closed
    history[1, -2:], history[2, -1], history[3, -2:] = [2, 5], 3, [9, 2]
    batch = {**everyone, "history/item": history, "label/item": label}
    windows = Fixed(**batch)
    scored = user_llm_scores(user_llm, trie=trie, eos_id=EOS)
    options = dict(num_beams=len(DISTINCT), max_steps=4, exclude_seen=True)
    searched = user_llm_beams(user_llm, trie=trie, eos_id=EOS, **options)
    shared = dict(batch_size=len(label), description="")
    exact, best = rank_by_scores(scored, windows, exclude_seen=True, **shared)
    ranks, items = rank_by_beams(searched, windows, trie=trie, **shared)
    scores, beams = np.asarray(scored(batch).all()), jax.tree.map(np.asarray, searched(batch)[0])
    expected = [rank_of(*row) for row in zip(scores, label, (set(row) - {0} for row in history.tolist()), strict=True)]
    assert ranks.tolist() == exact.tolist() == expected
    assert (scores[:, 0] == -np.inf).all()
    np.testing.assert_allclose(scores[:, [5, 9, 8]], scores[:, [2, 2, 3]], atol=1e-5)
    np.testing.assert_array_equal(items, beams.items)
    found = np.take_along_axis(scores, items, axis=1)
    np.testing.assert_allclose(np.where(items > 0, found, -np.inf), beams.scores, atol=1e-4)
    # A title is answered by all of its open items where these are scored, and by the first of them as a beam.
    for named, listed in zip(items.tolist(), best.tolist(), strict=True):
        titles = [GROUPS.get(item, [item])[0] for item in listed if item]
        first = [item for place, item in enumerate(listed[: len(titles)]) if titles[place] not in titles[:place]]
        assert first == named[: len(first)]


@pytest.mark.parametrize("reads", ["own history", "another user's", "none"])
def test_texts_continue_the_prompt_for_the_user_they_are_about(user_llm, windows, everyone, reads):
    """As long as asked for, greedily; whose events are read decides what is written."""
    batch = ShuffledContexts(windows).gather(np.arange(len(windows))) if reads == "another user's" else everyone
    options = dict(eos_id=EOS, max_new_tokens=5)
    written = np.asarray(user_llm_texts(user_llm, **options, with_context=reads != "none")(batch))
    prompts = everyone["prompt_tokens"], everyone["prompt_lengths"]
    of = "context" if reads == "another user's" else "history"
    context = context_of(user_llm, batch[f"{of}/item"], batch[f"{of}/rating"])
    about_user = np.asarray(generate(user_llm.module(), *prompts, context, **options))
    about_nobody = np.asarray(generate(user_llm.module().language_model, *prompts, None, **options))
    np.testing.assert_array_equal(written, about_nobody if reads == "none" else about_user)
    assert (about_user != about_nobody).any()
    assert written.shape == (len(windows), 5)


def test_texts_of_all_windows_are_read_up_to_their_end_without_the_batch_s_filler(windows):
    vocabulary = SimpleNamespace(
        eos_id=EOS, vocab_size=100, decode_rows=lambda rows: [f" {' '.join(map(str, row))} \n" for row in rows]
    )
    vocabulary.decode_batch = functools.partial(Vocabulary.decode_batch, vocabulary)
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
def test_mean_metrics_are_the_objective_over_all_windows_at_once(encoder, windows, everyone, batch_size):
    """In batches over 8 devices, the last one padded."""
    objective = autoregressive_objective(chunk_rows=16)
    _, _, metrics = jax.jit(objective)(encoder.module(), everyone, None)
    expected = {name: float(total / weight) for name, (total, weight) in metrics.items()}
    mesh = make_mesh({"data": 8, "fsdp": 1, "tensor": 1})
    parts = jax.device_get((encoder.parameters, encoder.buffers))
    evaluate = mean_metrics(objective, windows, batch_size)
    assert evaluate(Model(encoder.graphdef, *parts, mesh)) == pytest.approx(expected, rel=1e-5)
    assert set(expected) == {"loss", "loss/item", "loss/category", "loss/rating"}

"""Beams against enumeration, and against a beam search in plain Python, over full forward passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from user_llm.decoding.beam import beam_search
from user_llm.decoding.catalogue_trie import CatalogueTrie


@pytest.fixture(scope="module")
def trie(catalogue):
    return CatalogueTrie.build(*catalogue.tables, 2)


def plain_beam_search(truth, row, num_beams, max_steps, allowed=None):
    """[(score, tokens)]: every step keeps the best `num_beams` of all one-token continuations."""
    beams = [(0.0, ())]
    for _ in range(max_steps):
        candidates = [beam for beam in beams if beam[1][-1:] == (truth.eos_id,)]
        for score, prefix in beams:
            if prefix[-1:] != (truth.eos_id,):
                for token, log_prob in enumerate(truth.next_log_probs[row][prefix]):
                    if allowed is None or (*prefix, token) in allowed:
                        candidates.append((score + log_prob, (*prefix, token)))
        beams = sorted(candidates, reverse=True)[:num_beams]
    return beams


def prefixes(titles, eos_id):
    closed = [(*title, eos_id) for title in titles]
    return {title[: n + 1] for title in closed for n in range(len(title))}


def search(truth, **kwargs):
    return jax.tree.map(
        np.asarray,
        beam_search(truth.model, truth.prompts, truth.lengths, truth.context, eos_id=truth.eos_id, **kwargs),
    )


def assert_same(result, row, expected):
    """`expected`: [(score, tokens)] in order; slots behind them must be empty."""
    found = len(expected)
    np.testing.assert_allclose(result.scores[row, :found], [score for score, _ in expected], atol=2e-5)
    for tokens, (_, wanted) in zip(result.tokens[row], expected, strict=False):
        assert tuple(tokens[: len(wanted)]) == wanted
        assert not tokens[len(wanted) :].any()
    assert (result.scores[row, found:] == -np.inf).all()
    assert not result.tokens[row, found:].any()
    assert not result.items[row, found:].any()


def test_free_beams_wide_enough_enumerate_all_continuations(truth):
    result = search(truth, num_beams=300, max_steps=3)
    for row in truth.rows:
        expected = plain_beam_search(truth, row, 10**6, 3)
        assert len(expected) == 6**3 + 6**2 + 6 + 1
        assert_same(result, row, expected)
        assert not result.items.any()
        np.testing.assert_allclose(np.exp(result.scores[row]).sum(), 1, atol=1e-4)


def test_free_beams_are_those_of_a_plain_beam_search(truth):
    result = search(truth, num_beams=4, max_steps=4)
    for row in truth.rows:
        assert_same(result, row, plain_beam_search(truth, row, 4, 4))


def test_wide_constrained_beams_rank_the_whole_catalogue(truth, catalogue, trie):
    result = search(truth, num_beams=50, max_steps=9, trie=trie, excluded_items=np.zeros((3, 5), np.int32))
    assert result.tokens.shape == (3, 50, 5)  # never more steps than the longest title and its EOS
    for row in truth.rows:
        assert_ranked(truth, result, row, catalogue.titles)


def assert_ranked(truth, result, row, titles):
    """The beams of a row are all `titles` (item → tokens), best first, each by the lowest of its items."""
    lowest = {title: item for item, title in sorted(titles.items(), reverse=True)}
    closed = [(*title, truth.eos_id) for title in lowest]
    ranking = sorted(((truth.log_prob(row, title), title) for title in closed), reverse=True)
    assert_same(result, row, ranking)
    assert result.items[row, : len(ranking)].tolist() == [lowest[title[:-1]] for _, title in ranking]


def test_narrow_constrained_beams_are_those_of_a_plain_beam_search(truth, catalogue, trie):
    result = search(truth, num_beams=4, max_steps=5, trie=trie)
    allowed = prefixes(catalogue.titles.values(), truth.eos_id)
    for row in truth.rows:
        assert_same(result, row, plain_beam_search(truth, row, 4, 5, allowed))
        spelled = [catalogue.titles[item] + (truth.eos_id,) for item in result.items[row]]
        assert [tuple(tokens[: len(s)]) for tokens, s in zip(result.tokens[row], spelled, strict=True)] == spelled


def test_within_the_catalogue_a_token_without_rivals_costs_nothing(truth, catalogue, trie):
    titles = [(*title, truth.eos_id) for title in catalogue.titles.values()]
    excluded = np.zeros((3, 20), np.int32)
    excluded[1] = np.arange(1, 21)  # what is no answer for somebody is a title all the same
    result = search(truth, num_beams=50, max_steps=9, trie=trie, within_catalogue=True, excluded_items=excluded)
    for row in truth.rows:
        left = open_titles(catalogue, excluded[row]).values()
        ranking = sorted(
            {(truth.log_prob(row, (*t, truth.eos_id), titles), (*t, truth.eos_id)) for t in left}, reverse=True
        )
        assert_same(result, row, [(score, telling(title, titles)) for score, title in ranking])
        found = [(*catalogue.titles[item], truth.eos_id) for item in result.items[row] if item]
        assert found == [title for _, title in ranking]


def test_how_many_tokens_tell_a_title_from_all_others(truth, catalogue, trie):
    titles = [(*title, truth.eos_id) for title in catalogue.titles.values()]
    tokens = trie.telling_tokens()
    assert tokens[0] == 0
    assert {item: tokens[item] for item in catalogue.titles} == {
        item: len(telling((*title, truth.eos_id), titles)) for item, title in catalogue.titles.items()
    }
    alone = CatalogueTrie.build(np.array([[0, 0], [3, 4]]), np.array([0, 2]), truth.eos_id)
    assert alone.telling_tokens().tolist() == [0, 1]


def telling(title, titles):
    """The shortest beginning of a title that no other one has."""
    return next(
        title[:length]
        for length in range(1, len(title) + 1)
        if all(other == title for other in titles if other[:length] == title[:length])
    )


@pytest.mark.parametrize(("num_beams", "num_best"), [(4, 1), (12, 3), (12, 12), (50, 7)])
def test_the_best_are_the_same_wherever_the_search_ends(truth, trie, num_beams, num_best):
    options = dict(num_beams=num_beams, max_steps=5, trie=trie)
    for field, found, whole in zip(
        ("tokens", "scores", "items"),
        search(truth, num_best=num_best, **options),
        search(truth, **options),
        strict=True,
    ):
        np.testing.assert_array_equal(found, whole[:, :num_best], err_msg=field)


def test_what_is_weighed_by_titles_needs_titles(truth):
    with pytest.raises(ValueError, match="within_catalogue needs trie="):
        search(truth, num_beams=4, max_steps=5, within_catalogue=True)


def test_more_than_all_beams_are_no_answer(truth, trie):
    with pytest.raises(ValueError, match="num_best=5 is more than num_beams=4"):
        search(truth, num_beams=4, max_steps=5, trie=trie, num_best=5)


def open_titles(catalogue, excluded):
    """Item → title of what is not excluded."""
    return {item: title for item, title in catalogue.titles.items() if item not in excluded}


def test_excluded_items_never_come_out_and_cost_no_beams(truth, catalogue, trie):
    unconstrained = search(truth, num_beams=4, max_steps=5, trie=trie)
    excluded = np.zeros((3, 40), np.int32)
    excluded[0, :4] = unconstrained.items[0]  # each row its own
    excluded[1, [1, 2, 6, 7, 8]] = unconstrained.items[1, [0, 1, 2, 3, 0]]  # one named twice
    best = unconstrained.tokens[2, 0, 0]  # a dead end: every title that starts like the best one
    below = [item for item, title in catalogue.titles.items() if title[0] == best]
    excluded[2, : len(below)] = below
    result = search(truth, num_beams=4, max_steps=5, trie=trie, excluded_items=excluded)
    for row in truth.rows:
        left = open_titles(catalogue, excluded[row])
        assert_same(result, row, plain_beam_search(truth, row, 4, 5, prefixes(left.values(), truth.eos_id)))
        assert len(set(result.items[row])) == 4
        assert not set(result.items[row]) & set(excluded[row])
        assert (result.items[row] > 0).all()


def test_a_title_stands_for_its_open_items_and_closes_with_the_last(truth, catalogue, trie):
    items = {
        title: [i for i, other in catalogue.titles.items() if other == title] for title in catalogue.titles.values()
    }
    twins = max(items.values(), key=len)
    assert len(twins) == 4
    # The first two; another one, often; all, in any order and not one by one.
    excluded = np.array([[0, twins[1], 0, twins[0], 0], [twins[2]] * 5, [twins[i] for i in (3, 0, 2, 0, 1)]], np.int32)
    result = search(truth, num_beams=50, max_steps=9, trie=trie, excluded_items=excluded)
    for row, named in zip(truth.rows, (twins[2], twins[0], None), strict=True):
        assert_ranked(truth, result, row, open_titles(catalogue, excluded[row]))
        assert set(result.items[row]) & set(twins) == {named} - {None}


def test_too_few_steps_leave_beams_unfinished_and_without_item(truth, trie):
    result = search(truth, num_beams=50, max_steps=2, trie=trie)
    finished = (result.tokens == truth.eos_id).any(axis=-1)
    assert finished.any()
    assert not finished.all()
    np.testing.assert_array_equal(result.items > 0, finished)


def test_rows_of_padding_stay_finite_and_leave_the_others_alone(truth, trie):
    prompts = np.concatenate([truth.prompts[:2], np.zeros((1, 5), np.int32)])
    lengths = np.array([*truth.lengths[:2], 0])
    options = dict(num_beams=4, max_steps=5, eos_id=truth.eos_id, trie=trie)
    result = beam_search(truth.model, prompts, lengths, truth.context, **options)
    expected = search(truth, num_beams=4, max_steps=5, trie=trie)
    np.testing.assert_array_equal(result.items[:2], expected.items[:2])
    assert np.isfinite(result.scores).all()


def test_bad_arguments_are_named(truth):
    def call(**changes):
        options = {"num_beams": 2, "max_steps": 2, "eos_id": 2} | changes
        return beam_search(truth.model, truth.prompts, truth.lengths, truth.context, **options)

    with pytest.raises(ValueError, match="num_beams must be a whole number of at least 1, got 0"):
        call(num_beams=0)
    with pytest.raises(ValueError, match="max_steps must be a whole number of at least 1, got 0"):
        call(max_steps=0)
    with pytest.raises(ValueError, match="excluded_items needs trie="):
        call(excluded_items=jnp.zeros((3, 1), jnp.int32))
    with pytest.raises(ValueError, match=r"prompt_tokens must be .* got shape \(3, 0\)"):
        beam_search(truth.model, truth.prompts[:, :0], truth.lengths, num_beams=2, max_steps=2, eos_id=2)
    with pytest.raises(ValueError, match=r"prompt_lengths must be \[3\], .* got shape \(2,\)"):
        beam_search(truth.model, truth.prompts, truth.lengths[:2], num_beams=2, max_steps=2, eos_id=2)

"""Losses by token against enumeration: of a title's tokens by the LLM alone, of the encoder by sums over items."""

import numpy as np
import pytest

from tests.evaluation.conftest import EOS, ITEMS, TITLES
from user_llm.evaluation.evaluator import user_llm_scores
from user_llm.evaluation.title_losses import title_losses
from user_llm.evaluation.users import encoder_scores


@pytest.fixture(scope="module")
def losses(user_llm, encoder, windows, trie):
    return title_losses(user_llm, encoder_scores(encoder), windows, trie, batch_size=4)


def test_tokens_add_up_to_what_the_model_says_of_the_title(losses, user_llm, windows, trie):
    batch = windows.gather(np.arange(len(windows)))
    exact = np.asarray(user_llm_scores(user_llm, trie=trie, eos_id=EOS)(batch).all())
    rows = np.arange(len(windows))
    np.testing.assert_allclose(losses.llm.sum(axis=1), -exact[rows, batch["label/item"]], rtol=1e-4)
    # All mass inside of the catalogue is the sum over its titles; on the way to one it falls by what is outside.
    assert (losses.outside >= -1e-5).all()
    assert (losses.llm >= losses.outside - 1e-5).all()


def test_the_encoders_are_those_of_items(losses, encoder, windows):
    batch = windows.gather(np.arange(len(windows)))
    logits = np.asarray(encoder_scores(encoder)(batch).all(), np.float64)[:, 1:]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for row, label in enumerate(batch["label/item"]):
        whole = (*TITLES[label - 1], EOS)
        for place in range(len(whole)):
            before, after = (
                sum(share for share, title in zip(shares[row], TITLES, strict=True) if (*title, EOS)[:n] == whole[:n])
                for n in (place, place + 1)
            )
            assert losses.encoder[row, place] == pytest.approx(np.log(before / after), rel=1e-3, abs=1e-5)
            following = {(*title, EOS)[place] for title in TITLES if (*title, EOS)[:place] == whole[:place]}
            assert losses.choices[row, place] == len(following)
        assert not losses.choices[row, len(whole) :].any()
        assert not losses.llm[row, len(whole) :].any()
    assert len(TITLES) == ITEMS


def test_where_one_token_alone_may_follow_all_of_the_loss_is_outside(losses):
    alone = losses.choices == 1
    assert alone.any()
    np.testing.assert_allclose(losses.llm[alone], losses.outside[alone], rtol=1e-4, atol=1e-6)

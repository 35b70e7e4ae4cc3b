"""A trie that is mapped from a workdir against the one that was written."""

import logging

import jax
import numpy as np
import pytest

from tests.user_models import made_up
from user_llm.experiment import kept_tries
from user_llm.experiment.workdir import TRIES

TASK = "next_item"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_tries, "MANY", 100)
    return made_up(tmp_path).study


def anew(run):
    """The same run, of which nothing is in memory."""
    run._tries.clear()
    return run.answer_trie(TASK)


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)  # the sizes of levels, too
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_large_trie_is_mapped_as_it_was_written(run):
    built = run.answer_trie(TASK)
    for task in (TASK, "favorite_category"):
        kept_tries.keep_trie(run, task)
    assert [folder.name for folder in (run.workdir / TRIES).iterdir()] == [TASK]  # there are few categories
    found = anew(run)
    assert found is not built
    assert_same(found, built)


def test_a_damaged_trie_is_made_anew(run, caplog):
    built = run.answer_trie(TASK)
    kept_tries.keep_trie(run, TASK)
    file = run.workdir / TRIES / TASK / "token.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert_same(anew(run), built)
    assert "token.npy has changed" in caplog.text
    assert "it is not used" in caplog.text

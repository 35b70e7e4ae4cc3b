"""The benchmark compares equals: `transformers` finds the titles that our beams find, with the same scores."""

import numpy as np
import pytest

from benchmarks.beam_workload import EOS, BeamWorkload
from benchmarks.contenders import jax_beams

pytest.importorskip("torch", reason="the extra `test` installs PyTorch on Python 3.11 only")

LLM = dict(vocabulary=50, num_layers=2, width=16, num_heads=2, hidden=24)
SMALL = BeamWorkload(users=2, num_beams=3, prompt_length=4, num_titles=1000, longest_title=6, **LLM)


def test_contenders_find_the_same_titles():
    from benchmarks.contenders import transformers_beams  # needs PyTorch

    ours, theirs = jax_beams.build(SMALL)(), transformers_beams.build(SMALL)()
    shape = SMALL.users, SMALL.num_beams
    scores = theirs.sequences_scores.numpy().reshape(shape)
    found = scores > -1e6  # its beams may run out of titles to go on with, and some then stay empty
    assert found.mean() > 0.5
    np.testing.assert_allclose(scores[found], np.asarray(ours.scores)[found], rtol=1e-5)
    answers = theirs.sequences[:, SMALL.prompt_length :].numpy().reshape(*shape, -1)
    ended = np.cumsum(answers == EOS, axis=-1) - (answers == EOS)
    answers = np.where(ended, 0, answers)  # they fill up with EOS
    np.testing.assert_array_equal(answers[found], np.asarray(ours.tokens)[found, : answers.shape[-1]])
    assert (np.asarray(ours.tokens) == EOS).any(axis=-1).all()

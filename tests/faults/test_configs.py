"""Wrong configs and flags of `user_llm.main`."""

import pytest

from tests.faults.harness import train

CASES = {
    "no config": (["--workdir=W"], 2, "name an experiment"),
}


@pytest.mark.parametrize("fault", CASES)
def test_it_is_refused_in_words(fault, tmp_path):
    arguments, status, *words = CASES[fault]
    train(*arguments, folder=tmp_path).check(status, *words)

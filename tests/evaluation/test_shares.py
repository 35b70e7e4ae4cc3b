"""Several processes, each of which ranks its share, find what one process finds that has all of their devices."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from tests.evaluation import ranking_host
from tests.evaluation.ranking_host import USERS
from tests.parallel.together import answers
from user_llm.evaluation.shares import Share
from user_llm.parallel.mesh import AXES, one_device

SCRIPT = Path(ranking_host.__file__)


def together(count: int, rows: str, *cuts: str) -> list[dict]:
    return answers(SCRIPT, str(count), rows, *cuts, count=count, devices=1)


def alone(rows: str, cut: str) -> dict:
    """What one process finds with as many devices."""
    sizes = tuple(map(int, cut.split(",")))
    mesh = Mesh(np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes), AXES)
    return json.loads(json.dumps(ranking_host.plain(ranking_host.evaluated(mesh, rows))))


@pytest.fixture(scope="module")
def two():
    """What each of two processes found, by mesh."""
    return together(2, "some", "2,1,1", "1,2,1")


@pytest.mark.parametrize("cut", ["2,1,1", "1,2,1"])
def test_two_processes_find_the_bits_of_one(two, cut):
    assert_the_bits_of_one(two, "some", cut)


def assert_the_bits_of_one(processes: list[dict], rows: str, cut: str) -> None:
    expected = alone(rows, cut)
    read, losses, devices = (expected.pop(name) for name in ("read by one row", "losses", "devices"))
    assert read == list(range(USERS))
    assert devices == len(processes)
    for process in processes:
        found = dict(process[cut]["found"])
        # Its own users, and the first, who fills the last batch.
        assert found.pop("read by one row") == sorted({0, *process[cut]["share"]})
        assert found.pop("devices") == (1 if process[cut]["waits for nobody"] else len(processes))
        assert found.pop("losses") == pytest.approx(losses, rel=1e-6)  # sums, which all devices add up in some order
        assert found == expected


def test_in_another_shape_of_batches_ranks_are_the_same_and_scores_to_rounding(two):
    """A device had half of a batch; here one has all of it. No two scores of these users are as near as rounding."""
    expected, found = alone("some", "1,1,1"), two[0]["2,1,1"]["found"]
    logits, others = (np.frombuffer(bytes.fromhex(of["logits"][2]), np.float32) for of in (expected, found))
    np.testing.assert_allclose(others, logits, rtol=1e-5, atol=1e-5)
    for row in ("popularity", "encoder", "beams", "shuffled"):
        assert found[row][0] == expected[row][0], row


def test_each_user_is_the_share_of_one_process(two):
    for found in two[0].values():
        assert found["waits for nobody"] == (found is two[0]["2,1,1"])
    for cut in two[0]:
        shares = [process[cut]["share"] for process in two]
        assert shares == [[0, 1, 2, 3, 8, 9, 10], [4, 5, 6, 7]]


def test_what_one_process_must_refuse_all_refuse(two):
    for process in two:
        for found in process.values():
            assert found["refused"].startswith("1 of 11 rows of scores hold NaN, the first in row 3")


def test_on_the_devices_of_one_process_the_share_is_everything():
    share = Share(5, 2, one_device())
    assert share.ids.tolist() == [0, 1, 2, 3, 4]
    column, texts = np.arange(10.0).reshape(5, 2), list("abcde")
    assert share.whole(column) is column
    assert share.whole_texts(texts) == texts


@pytest.mark.drill
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("cut", ["4,1,1", "2,2,1", "1,4,1", "2,1,2", "1,2,2"])
def test_four_processes_find_the_bits_of_one(cut):
    assert_the_bits_of_one(together(4, "all", cut), "all", cut)

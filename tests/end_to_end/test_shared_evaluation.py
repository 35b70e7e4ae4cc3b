"""A finished training, evaluated by several processes: to the bit what one process finds that has all their devices."""

import json
import shutil
from pathlib import Path

import pytest

from tests.end_to_end.hosts import assert_same, finish

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1800)]

SHORT = [*(f"--config.training.{stage}.steps=6" for stage in ("llm", "encoder", "user_llm"))]
SHORT += ["--config.evaluation.batch_size=16"]  # three batches of 48 users
FUSED = [
    *("--config.evaluation.answers=fused", "--config.evaluation.cold_share=0.1"),
    # Beams begin with states of texts that are kept.
    *("--config.strategy=lora", "--config.integration.every=1", "--config.integration.first_layer=1"),
    "--config.lora.first_layer=1",
]
TWO_TASKS = [
    *("--config.task=next_item,favorite_category", "--config.evaluation.constrained=false"),
    *("--config.data.text_history=2", "--config.prompt.max_inputs=60"),
]
REVIEWS = [
    *("--config.task=review_generation", "--config.data.dataset=amazon_reviews/simulated"),
    *("--config.prompt.max_inputs=140", "--config.prompt.max_targets=30"),
]
CUT = ["--config.compute.mesh.data=1", "--config.compute.mesh.fsdp=4"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def unevaluated(finished: Path, workdir: Path) -> Path:
    """A copy of a finished run without what its evaluation has found."""
    shutil.copytree(finished, workdir)
    for path in (workdir / "results.json", workdir / "predictions.jsonl", *workdir.glob("fusion/*.json")):
        path.unlink()
    return workdir


@pytest.mark.parametrize("flags", [FUSED, [*FUSED, *CUT], TWO_TASKS, REVIEWS], ids=["fused", "cut", "two", "reviews"])
def test_evaluated_by_two_and_by_four_processes(tmp_path, data_dir, flags):
    flags = [*SHORT, *flags]
    one = finish(tmp_path / "one", data_dir, flags, count=1, devices=4)
    for count in (2, 4):
        several = unevaluated(one, tmp_path / str(count))
        assert_same(finish(several, data_dir, flags, count=count, devices=4 // count), one)
    tables = json.loads((one / "results.json").read_text())["protocols"]
    assert all(table["users"] > 0 for table in tables.values())

"""Strategies in the loop itself: what is frozen keeps every bit, everything else moves (paper 3.2.3)."""

import hashlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from user_llm.checkpoints.transfer import initialise, with_prefix
from user_llm.data.pipeline import TrainBatches
from user_llm.host import Host
from user_llm.models import parameters
from user_llm.models.language_model import LanguageModel
from user_llm.models.model import Model
from user_llm.parallel.mesh import one_device
from user_llm.schema import training
from user_llm.training import loop
from user_llm.training.objectives import contextualised_objective
from user_llm.training.trainable import STRATEGIES

# Without decay, and at full rate from the first step: what moves has a gradient. Two steps, as in the first the gates
# are shut and they alone of encoder and connector have one.
CONFIG = training(
    steps=2, batch_size=8, learning_rate=0.01, warmup_fraction=0.0, weight_decay=0.0, eval_every=0, checkpoint_every=2
)
FROZEN = {"full": set(), "enc": {"language_model"}, "proj": {"encoder", "language_model"}}


def digest(values):
    return {path: hashlib.sha256(np.asarray(value).tobytes()).hexdigest() for path, value in values.items()}


@pytest.fixture(scope="module")
def pretrained(build_encoder, build_user_llm):
    """Encoder and LLM of earlier stages."""
    config = parameters.abstract(build_user_llm).language_model.config
    builders = {"encoder": build_encoder, "language_model": lambda rngs: LanguageModel(config, rngs=rngs)}
    places = parameters.split(parameters.abstract(build_user_llm))[1]
    found = {}
    for name, build in builders.items():
        values = with_prefix(name, initialise(build, 7, one_device())[1])
        found[name] = {path: value for path, value in values.items() if path in places}
    return found


@pytest.fixture(scope="module", params=["pretrained", "random"])
def initial(request, pretrained, build_user_llm):
    """All parameters as a stage starts with them, on the host."""
    given = dict(pretrained["language_model"])
    if request.param == "pretrained":
        given |= pretrained["encoder"]
    values = jax.device_get(initialise(build_user_llm, 0, one_device(), given)[1])
    assert digest(given).items() <= digest(values).items()
    same = digest(pretrained["encoder"]).items() & digest(values).items()
    begin_alike = ("scale_D", "projection_EU")  # ones, and identities
    assert all(path.endswith(begin_alike) for path, _ in same) == (request.param == "random")
    return values


@pytest.mark.parametrize("strategy", FROZEN)
def test_two_steps_move_what_trains_and_nothing_else(strategy, initial, build_user_llm, examples, tmp_path):
    mesh, before = one_device(), digest(initial)
    graphdef, values, buffers = initialise(build_user_llm, 0, mesh, initial)
    stage = loop.TrainingRun(
        name="user_llm",
        config=CONFIG,
        model=Model(graphdef, values, buffers, mesh),
        axes=parameters.logical_axes(parameters.abstract(build_user_llm)),
        rules=STRATEGIES[strategy],
        objective=contextualised_objective(chunk_rows=32),
        batches=TrainBatches(examples, CONFIG.batch_size, seed=1),
    )
    after = digest(loop.train(stage, tmp_path, seed=3, host=Host(tensorboard=False)).parameters)

    moved = {path for path in before if after[path] != before[path]}
    assert moved == {path for path in before if path.split("/")[0] not in FROZEN[strategy]}
    # Frozen parameters have no copy in the checkpoint, and no slots in the optimizer.
    step = tmp_path.resolve() / "checkpoints" / "2"
    with ocp.StandardCheckpointer() as checkpointer:
        saved, rest = (checkpointer.metadata(step / item).item_metadata.tree for item in ("parameters", "rest"))
    assert saved.keys() == moved
    leaves = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(rest["optimizer"])]
    for slot in ("mu", "nu"):
        assert sum(f"['{slot}']" in leaf for leaf in leaves) == len(moved)

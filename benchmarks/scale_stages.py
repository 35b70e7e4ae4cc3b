"""What a run of one size does in its process, phase after phase, and the core seconds of each.

    python -m benchmarks.scale_stages '{"raw": …, "data_dir": …, "workdir": …, "users": 20000, "out": …}'

A small model on purpose: what is measured is how costs grow with users, not what a large one takes.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
from ml_collections import ConfigDict

from user_llm import schema
from user_llm.data.pipeline import TrainBatches
from user_llm.evaluation.evaluator import rank_by_scores
from user_llm.evaluation.users import encoder_scores
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.prepare import prepare
from user_llm.experiment.training import Models, run_stages
from user_llm.host import Host
from user_llm.inspect.audit import audit

HISTORY, BATCH, READ_BATCH = 20, 128, 8_192
STEPS_OF_LM = 20
USERS_PER_ANSWER = 8
"""Of so many users one is an example of stage `user_llm`."""
ROUNDS = 3
"""Of phases that take less than a second; their median counts."""
READ_WINDOWS = 100
"""Windows that are read for each user: training reads them once an epoch."""


def config_of(raw: Path, data_dir: Path, users: int, stages: tuple[str, ...]) -> ConfigDict:
    """The experiment: stage `encoder` takes a window for each user, whatever their number.

    Args:
      raw: folder of MovieLens' files.
      data_dir: of the dataset.
      users: of these files.
      stages: those that are trained.
    """
    config = schema.get_config()
    with config.unlocked():
        config.name, config.stages = "scale", stages
        config.data.update(dict(dataset="movielens/20m", raw_path=str(raw), data_dir=str(data_dir)))
        config.data.update(dict(history_length=HISTORY, validation=False))
        config.encoder.update(dict(num_layers=2, width=32, num_heads=2, hidden=64, features=("item", "rating")))
        config.llm.update(dict(num_layers=2, width=32, num_heads=2, num_kv_heads=1, head_dim=16, hidden=64))
        config.llm.vocabulary_size = 512
        config.integration.update(dict(num_heads=2, head_dim=16, hidden=64))
        steps = {"llm": STEPS_OF_LM, "encoder": users // BATCH, "user_llm": users // (USERS_PER_ANSWER * BATCH)}
        for stage, count in steps.items():
            quiet = dict(eval_every=0, keep_best="", log_every=100, checkpoint_every=10**9)
            config.training[stage].update(dict(steps=max(count, 1), batch_size=BATCH, **quiet))
        config.evaluation.update(dict(batch_size=256, max_users=256))
    return config


def measure(options: dict[str, Any]) -> dict[str, float]:
    """Core seconds of each phase."""
    raw, data_dir, workdir = (Path(options[name]) for name in ("raw", "data_dir", "workdir"))
    users = options["users"]
    experiment = Experiment(config_of(raw, data_dir, users, ("encoder",)), workdir)

    def trained() -> Models:
        prepare(experiment)
        return run_stages(experiment, Host(tensorboard=False))

    seconds: dict[str, float] = {}

    def timed(phase: str, act: Callable[[], Any], rounds: int = 1) -> Any:
        taken = []
        for _ in range(rounds):
            begin = time.process_time()
            found = act()
            taken.append(time.process_time() - begin)
        seconds[phase] = median(taken)
        return found

    timed("count", lambda: (experiment.table, experiment.item_counts))
    timed("read", lambda: _read(experiment, users * READ_WINDOWS), ROUNDS)
    models = timed("encoder", trained)
    ranking = dict(batch_size=256, exclude_seen=True, mesh=experiment.mesh)
    scores = encoder_scores(models["encoder"])
    timed("evaluate", lambda: rank_by_scores(scores, experiment.windows("test"), **ranking))
    timed("audit", lambda: audit(experiment), ROUNDS)
    return seconds


def _read(experiment: Experiment, count: int) -> None:
    batches = TrainBatches(experiment.windows("train"), READ_BATCH, seed=0)
    for step in range(-(-count // READ_BATCH)):
        batches.batch(step)


def main() -> None:
    options = json.loads(sys.argv[1])
    jax.config.update("jax_platforms", "cpu")
    Path(options["out"]).write_text(json.dumps(measure(options)))


if __name__ == "__main__":
    main()

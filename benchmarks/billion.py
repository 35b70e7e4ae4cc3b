"""Trains an encoder on random timelines of any size, and prints a hash of what it has learnt.

    python -m benchmarks.billion --data=FOLDER --workdir=FOLDER --events=1000000000 --steps=60

Kill it (-9) and start it again: it goes on from its last checkpoint, and ends with the same hash as a run that was
left alone.
"""

import argparse
import hashlib
import logging
import time
from pathlib import Path

import jax

from benchmarks.event_columns import random_timelines
from user_llm import schema
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.prepare import prepare
from user_llm.experiment.training import run_stages
from user_llm.host import Host


def experiment_on(data: Path, workdir: Path, events: int, steps: int, shards: int) -> Experiment:
    """Stage `encoder` alone, small, on `events` random events."""
    config = schema.get_config()
    with config.unlocked():
        config.name, config.stages = "billion", ("encoder",)
        config.data.update(dict(history_length=50, validation=False, shards=shards))
        config.encoder.update(dict(num_layers=2, width=64, num_heads=4, hidden=128, features=("item", "rating")))
        config.training.encoder.update(
            dict(steps=steps, batch_size=64, checkpoint_every=10, eval_every=0, keep_best="", log_every=10)
        )
    experiment = Experiment(config, workdir)
    experiment.__dict__["table"] = random_timelines(data, events)  # in place of a dataset that was built
    return experiment


def digest(values: dict[str, jax.Array]) -> str:
    """SHA-256 of all parameters, by name."""
    found = hashlib.sha256()
    for name in sorted(values):
        found.update(name.encode() + jax.device_get(values[name]).tobytes())
    return found.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.billion", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the timelines; written where it is new")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--events", type=int, default=10**9)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--shards", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    experiment = experiment_on(arguments.data, arguments.workdir, arguments.events, arguments.steps, arguments.shards)
    begin = time.perf_counter()
    prepare(experiment)
    model = run_stages(experiment, Host())["encoder"]
    print(f"{time.perf_counter() - begin:.1f} s; parameters {digest(model.parameters)}")


if __name__ == "__main__":
    main()

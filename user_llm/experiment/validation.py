"""Validation of a whole config: its values, and what its tasks, its encoder kind and its stages say of them."""

from collections.abc import Collection, Iterator

from ml_collections import ConfigDict

from user_llm.config import missing_files, refuse, says, task_names, unlike, wrong_together, wrong_values
from user_llm.encoders import ENCODERS
from user_llm.experiment.stages import STAGES
from user_llm.keys import wrong_keys
from user_llm.tasks import TASKS


def validate(config: ConfigDict) -> None:
    """Raises `ConfigError`, with a line for each of a config's `problems`."""
    refuse(problems(config))


def problems(config: ConfigDict, awaited: Collection[str] = ()) -> list[str]:
    """A line for each key that the schema has not, and each value that cannot be, or does not go with another.

    Args:
      config: from a file, from flags or from a workdir.
      awaited: keys whose files another run will have left by then.
    """
    return (
        [*wrong_keys(config)]
        or [*_names(config), *wrong_values(config)]  # the rest looks these names up, and divides by these numbers
        or [*wrong_together(config), *_parts(config), *missing_files(config, awaited)]
    )


def _names(config: ConfigDict) -> Iterator[str]:
    tasks, stages = task_names(config), tuple(config.stages)
    for name in tasks:
        yield from unlike(config, "task", name, TASKS.names)
    if len(set(tasks)) < len(tasks):
        yield f"{says(config, 'task')}: expected each task once"
    yield from unlike(config, "encoder.kind", config.encoder.kind, ENCODERS.names)
    if not stages or stages != tuple(stage for stage in STAGES.names if stage in stages):
        yield f"{says(config, 'stages')}: expected some of {STAGES.names}, each once and in this order"
    for stage in STAGES:
        key = f"training.{stage.name}.keep_best"
        yield from unlike(config, key, config.training[stage.name].keep_best, ("", *stage.metrics))


def _parts(config: ConfigDict) -> Iterator[str]:
    for name in task_names(config):
        yield from TASKS[name].problems(config)
    yield from ENCODERS[config.encoder.kind].problems(config)
    for name in config.stages:
        yield from STAGES[name].problems(config)

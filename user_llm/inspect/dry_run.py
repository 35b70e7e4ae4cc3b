"""`--dry_run`: builds an experiment's models from shapes alone, and says what they weigh on each device."""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from user_llm.checkpoints import huggingface
from user_llm.experiment.assembly import Assembly
from user_llm.experiment.parameter_table import print_parameter_table
from user_llm.experiment.stages import stages_of
from user_llm.models import parameters
from user_llm.parallel.mesh import AXES
from user_llm.parallel.processes import is_lead

# Items, categories and rating classes of the published files, so that no download is needed to plan a run.
PUBLISHED = {
    "movielens/20m": (27_278, 20, 10),
    "movielens/25m": (62_423, 20, 10),
    "movielens/1m": (3_883, 18, 5),
    "movielens/latest_small": (9_742, 20, 10),
}
ASSUMED = (100_000, 1_000, 5)  # of a dataset that is not built yet


def dataset_sizes(config: ConfigDict) -> tuple[int, int, int]:
    """Items, categories and rating classes of the config's dataset: published, counted where built, or assumed."""
    data = config.data
    if data.dataset in PUBLISHED:
        return PUBLISHED[data.dataset]
    if data.dataset == "movielens/simulated":
        return data.simulated.num_items, 20, 10
    from user_llm.builders.families import builder_of  # brings TFDS, which takes seconds

    builder = builder_of(data.dataset, data_dir=data.data_dir or None)
    if not builder.data_path.exists():
        return ASSUMED
    metadata = builder.info.metadata
    return metadata["summary"]["items"], metadata["categories"], len(metadata["rating_names"]) - 1


def assembly_of(config: ConfigDict) -> Assembly:
    """The models of `config`, without its data."""
    items, categories, ratings = dataset_sizes(config)
    llm = config.llm
    # How many pieces are kept is known with the data: all of them are the most.
    pieces = huggingface.load_config(llm.checkpoint).vocab_size if llm.trim_vocabulary else llm.vocabulary_size
    return Assembly(
        config=config,
        item_categories=np.zeros((items + 1, 1), np.int32),
        num_categories=categories,
        num_ratings=ratings,
        vocabulary_size=pieces,
    )


def print_dry_run(config: ConfigDict) -> None:
    """Prints parameters and bytes per device of every stage of `config`.

    The mesh is the config's, whether this machine has the devices or not; an axis of -1 is what is left of them.
    """
    if dataset_sizes(config) is ASSUMED and is_lead():
        counts = "{:,} items, {:,} categories and {} ratings".format(*ASSUMED)
        print(f"{config.data.dataset} is not built yet, so its sizes are not known; this plan assumes {counts}.")
    if config.llm.trim_vocabulary and is_lead():
        print("Which pieces config.llm.trim_vocabulary keeps is known with the data; this plan keeps all of them.")
    assembly, mesh = assembly_of(config), _abstract_mesh(config.compute.mesh)
    for stage in stages_of(config):
        model = parameters.abstract(stage.builder(assembly))
        _, shapes, _ = parameters.split(model)
        print_parameter_table(assembly, stage, shapes, parameters.logical_axes(model), mesh)


def _abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    known = math.prod(size for size in sizes.values() if size != -1)
    rest = max(1, jax.device_count() // known)
    return AbstractMesh(tuple(rest if sizes[axis] == -1 else sizes[axis] for axis in AXES), AXES)

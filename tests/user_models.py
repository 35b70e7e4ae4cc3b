"""A `UserModel` with weights by chance, made in seconds. Some titles of its catalogue share their tokens."""

import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.timelines import catalogue_of
from user_llm import api
from user_llm.data.timelines import Catalogue
from user_llm.data.vocabularies import load_vocabulary, train_sentencepiece
from user_llm.experiment.experiment import Experiment
from user_llm.models import parameters
from user_llm.models.model import Model
from user_llm.parallel.mesh import one_device

ITEMS, HISTORY, CATEGORIES = 130, 4, 6
RATINGS = ["", *(str(half / 2) for half in range(1, 11))]


def _catalogue() -> Catalogue:
    words = ("Crimson", "Harbour", "Glass", "Night", "Amélie")
    # Cut at max_targets, every third title has the tokens of others.
    streets = "of the long and winding streets"
    titles = [f"{words[item % 5]} {item if item % 3 else streets}" for item in range(ITEMS)]
    categories = [[1 + item % CATEGORIES] for item in range(ITEMS)]
    names = ["", *(f"Genre {number}" for number in range(CATEGORIES))]
    return catalogue_of(["", *titles], ["", *map(str, range(ITEMS))], names, [[], *categories])


def _lively(build: parameters.Builder, item_categories: np.ndarray) -> Model:
    """Gates open, logits large. NumPy's values, to spare compilations."""
    graphdef, shapes, buffers = parameters.split(parameters.abstract(build))
    generator = np.random.default_rng(1)
    values = {path: jnp.asarray(generator.normal(size=v.shape) * 0.3, v.dtype) for path, v in shapes.items()}
    return Model(graphdef, values, dict.fromkeys(buffers, jnp.asarray(item_categories, jnp.int32)), one_device())


def made_up(folder: Path, history: int = HISTORY) -> api.UserModel:
    """Asked for next items and favourite categories; its tokenizer is written to `folder`. Each is the same."""
    catalogue = _catalogue()
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent / "end_to_end" / "tiny.py")
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    config = tiny.get_config()
    config.task = "next_item,favorite_category"
    config.data.history_length = history
    config.prompt.max_targets = 14
    train_sentencepiece([*catalogue.titles, *catalogue.category_names], 300, folder / "tokenizer.model")
    experiment = Experiment(config, folder, one_device())
    experiment.catalogue, experiment.vocabulary = catalogue, load_vocabulary(folder)
    experiment._facts = {"rating_names": RATINGS}
    model = _lively(experiment.assembly.user_llm, catalogue.item_categories)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "RestoredStages", lambda _: {"user_llm": model})
        return api.UserModel(experiment)

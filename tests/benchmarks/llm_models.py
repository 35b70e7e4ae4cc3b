"""A tiny frozen Llama that reads users, as the contenders of part llm build it, and a batch for it."""

import functools
from pathlib import Path

import numpy as np

from benchmarks.beam_workload import BeamWorkload
from benchmarks.contenders.jax_user_llm import with_open_gates
from benchmarks.llm_workload import config_of
from user_llm.checkpoints import huggingface
from user_llm.checkpoints.transfer import initialise, with_prefix
from user_llm.experiment.assembly import Assembly
from user_llm.models.model import Model
from user_llm.parallel.mesh import one_device

LLAMA = BeamWorkload(vocabulary=50, num_layers=4, width=16, num_heads=2, hidden=24)
ITEMS, EVENTS, USERS, PROMPT, ANSWER = 31, 6, 5, 4, 5
SIZES = {
    "data.history_length": EVENTS,
    "encoder.num_layers": 2,
    "encoder.width": 12,
    "encoder.num_heads": 3,
    "encoder.hidden": 20,
    "integration.every": 2,
    "integration.num_heads": 3,
    "integration.head_dim": 8,
    "integration.hidden": 28,
}


@functools.cache
def assembly(folder: Path, strategy: str = "enc") -> Assembly:
    """Of a Llama that is written to `folder`."""
    LLAMA.save(folder)
    config = config_of({**SIZES, "llm.checkpoint": str(folder), "strategy": strategy})
    no_categories = np.zeros((ITEMS + 1, 1), np.int32)
    return Assembly(config, no_categories, num_categories=1, num_ratings=1, vocabulary_size=LLAMA.vocabulary)


def model(folder: Path) -> Model:
    """With the Llama's weights, and gates that are open."""
    loaded = huggingface.load_parameters(str(folder), assembly(folder).language_model_config, one_device())
    built = initialise(assembly(folder).user_llm, 0, one_device(), with_prefix("language_model", loaded))
    return with_open_gates(Model(*built, one_device()))


def batch() -> dict[str, np.ndarray]:
    """Whole histories; answers of different lengths behind prompts of one."""
    rng, tokens = np.random.default_rng(0), PROMPT + ANSWER - 1
    text = rng.integers(3, LLAMA.vocabulary, (USERS, tokens + 1), dtype=np.int32)
    place = np.arange(tokens)
    learnt = (place >= PROMPT - 1) & (place < PROMPT + rng.integers(0, ANSWER, (USERS, 1)))
    items = rng.integers(1, ITEMS + 1, (USERS, EVENTS), dtype=np.int32)
    return {
        "history/item": items,
        "history/rating": np.ones_like(items),
        "decoder_input_tokens": text[:, :-1],
        "decoder_target_tokens": text[:, 1:],
        "decoder_loss_weights": learnt.astype(np.float32),
        "decoder_positions": np.tile(place.astype(np.int32), (USERS, 1)),
        "prompt_tokens": text[:, :PROMPT],
        "prompt_lengths": np.full(USERS, PROMPT, np.int32),
        "dropped_events": np.zeros(USERS, np.int32),
    }

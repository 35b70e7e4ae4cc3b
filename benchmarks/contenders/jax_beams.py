"""Our beam search over a catalogue, as evaluation compiles it."""

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.beam_workload import EOS, BeamWorkload
from benchmarks.protocol import serve
from user_llm.checkpoints.huggingface import load_language_model
from user_llm.decoding.beam import BeamResult, beam_search
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.models import parameters


def build(workload: BeamWorkload):
    """Returns a function without arguments that searches."""
    with tempfile.TemporaryDirectory() as folder:
        workload.save(Path(folder))
        graphdef, values, buffers = parameters.split(load_language_model(folder))
    trie = CatalogueTrie.build(*workload.titles(), EOS)
    prompts = jnp.asarray(workload.prompts(), jnp.int32)
    lengths = jnp.full(workload.users, workload.prompt_length, jnp.int32)

    @jax.jit
    def apply(values, buffers, trie, prompts, lengths) -> BeamResult:
        return beam_search(
            parameters.merge(graphdef, values, buffers),
            prompts,
            lengths,
            num_beams=workload.num_beams,
            max_steps=workload.longest_title + 1,
            eos_id=EOS,
            trie=trie,
        )

    return lambda: apply(values, buffers, trie, prompts, lengths)


def setup(options: dict[str, Any]):
    search = build(BeamWorkload(**options["workload"]))
    return lambda: float(np.mean(search().scores[:, 0]))


if __name__ == "__main__":
    serve(setup, ("jax", "jaxlib", "flax"))

"""What an exported run computes: functions of flat dicts of arrays, so that nothing is baked into a program."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from user_llm.decoding.beam import beam_search
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.models.model import Model
from user_llm.models.user_llm import UserLLM

Arrays = Mapping[str, Any]  # of arrays

_OF_USERS = ("encoder/", "perceiver/")  # parameters that only reading users needs


def weights_of(model: Model) -> dict[str, np.ndarray]:
    """Parameters and buffers by path; buffers begin with "buffers/"."""
    buffers = {f"buffers/{path}": value for path, value in model.buffers.items()}
    return {path: np.asarray(value) for path, value in {**model.parameters, **buffers}.items()}


class Programs:
    """The programs of a contextualised LLM.

    Args:
      model: of the run.
      trie: of the titles.
      eos_id: of its vocabulary.
      within_catalogue: see `beam_search`.
    """

    def __init__(self, model: Model, trie: CatalogueTrie, eos_id: int, *, within_catalogue: bool = False):
        self._model, self._trie, self._eos_id, self._within_catalogue = model, trie, eos_id, within_catalogue

    def encode(self, weights: Arrays, history: Arrays) -> dict[str, jax.Array]:
        """`embeddings` float `[B, N, U]` and `mask` bool `[B, N]` of events int32 `[B, S]` by name."""
        embeddings, mask = self._llm(weights).embed(history, history["item"] > 0)
        return {"embeddings": embeddings, "mask": mask}

    def recommend(
        self, weights: Arrays, trie: Arrays, users: Arrays, prompt: jax.Array, excluded: jax.Array, *, num_beams: int
    ) -> dict[str, jax.Array]:
        """`items` int32 `[B, J]`, best first, 0 for none, and their `scores` float32 `[B, J]`.

        Args:
          users: what `encode` gives.
          prompt: int32 `[P]`, the same for all users.
          excluded: int32 `[B, E]`, items that are no answer, 0-padded.
        """
        llm, titles = self._llm(weights), CatalogueTrie.of_columns(trie, self._trie.fan_out, self._trie.level_ends)
        batch = len(users["embeddings"])
        found = beam_search(
            llm,
            jnp.broadcast_to(prompt, (batch, len(prompt))),
            jnp.full(batch, len(prompt)),
            llm.context(users["embeddings"], users["mask"]),
            num_beams=num_beams,
            max_steps=len(self._trie.fan_out),
            eos_id=self._eos_id,
            trie=titles,
            excluded_items=excluded,
            within_catalogue=self._within_catalogue,
        )
        return {"items": found.items, "scores": found.scores}

    def _llm(self, weights: Arrays) -> UserLLM:
        def given(kept: Arrays, prefix: str = "") -> dict[str, Any]:
            # What a program does not read is not among its weights: zeros stand in for it.
            return {path: weights.get(prefix + path, jnp.zeros(x.shape, x.dtype)) for path, x in kept.items()}

        parameters, buffers = given(self._model.parameters), given(self._model.buffers, "buffers/")
        return cast(UserLLM, dataclasses.replace(self._model, parameters=parameters, buffers=buffers).module())


def reads(program: str, path: str) -> bool:
    """Whether "encode" or "recommend" reads the weight at a path."""
    return path.removeprefix("buffers/").startswith(_OF_USERS) == (program == "encode")


def lowered(function, platforms: Sequence[str], *arguments) -> bytes:
    """A function of arrays like these, serialised for some platforms ("cpu", "cuda", "tpu"); none has to be here."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
    return bytes(export.export(jax.jit(function), platforms=tuple(platforms))(*shapes).serialize())

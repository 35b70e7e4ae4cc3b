"""The same beam search by `transformers`: `generate` with the catalogue's prefixes in `prefix_allowed_tokens_fn`."""

import collections
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from benchmarks.beam_workload import EOS, BeamWorkload
from benchmarks.protocol import serve


def following(tokens: np.ndarray, lengths: np.ndarray, eos: int) -> dict[tuple[int, ...], list[int]]:
    """The beginning of a title → the tokens that may follow; row 0 is no title."""
    found = collections.defaultdict(set)
    for title, length in zip(tokens[1:].tolist(), lengths[1:], strict=True):
        closed = (*title[:length], eos)
        for end in range(len(closed)):
            found[closed[:end]].add(closed[end])
    return {prefix: sorted(tokens) for prefix, tokens in found.items()}


def build(workload: BeamWorkload):
    """Returns a function without arguments that searches."""
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        workload.save(Path(folder))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    after = following(*workload.titles(), EOS)
    prompts = torch.from_numpy(workload.prompts())

    def allowed(_, tokens: torch.Tensor) -> list[int]:
        return after.get(tuple(tokens[workload.prompt_length :].tolist()), [EOS])

    def search():
        return model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            num_beams=workload.num_beams,
            num_return_sequences=workload.num_beams,
            max_new_tokens=workload.longest_title + 1,
            do_sample=False,
            length_penalty=0.0,  # scores are log-probabilities of whole titles
            early_stopping=True,
            prefix_allowed_tokens_fn=allowed,
            return_dict_in_generate=True,
            output_scores=True,
        )

    return search


def setup(options: dict[str, Any]):
    workload = BeamWorkload(**options["workload"])
    search = build(workload)
    return lambda: float(search().sequences_scores.view(workload.users, -1)[:, 0].mean())


if __name__ == "__main__":
    serve(setup, ("torch", "transformers"))

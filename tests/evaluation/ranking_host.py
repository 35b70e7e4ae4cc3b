"""One of several processes that evaluate together, started by `test_shares.py`: prints what it finds as JSON.

`evaluated` is what one process finds alone, too.
"""

import dataclasses
import json
import sys
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.evaluation.conftest import EOS, Windows, build_encoder, build_trie, build_user_llm, lively
from user_llm.data.vocabulary import Vocabulary
from user_llm.evaluation.baselines import popularity_scores
from user_llm.evaluation.evaluator import (
    ShuffledContexts,
    mean_metrics,
    rank_by_beams,
    rank_by_scores,
    user_llm_beams,
    user_llm_scores,
    user_llm_texts,
    write_texts,
)
from user_llm.evaluation.fusion import log_prior, mean_of
from user_llm.evaluation.scores import ItemScores
from user_llm.evaluation.shares import Share
from user_llm.evaluation.users import encoder_scores
from user_llm.models import parameters
from user_llm.models.model import Model
from user_llm.parallel import mesh as meshes
from user_llm.parallel import processes
from user_llm.parallel.own_devices import on_own_devices
from user_llm.parallel.rules import parameter_shardings
from user_llm.training.objectives import autoregressive_objective

USERS, BATCH = 11, 8


class Recorded(Windows):
    """Windows that keep whose they were asked for."""

    def __init__(self):
        super().__init__(USERS)
        object.__setattr__(self, "read", [])

    def gather(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        self.read.extend(ids.tolist())
        return super().gather(ids)


def on(mesh: Mesh, model: Model, build: parameters.Builder) -> Model:
    """The same model, cut over a mesh as the rules say."""
    places = parameter_shardings(model.parameters, parameters.logical_axes(parameters.abstract(build)), mesh)
    whole = NamedSharding(mesh, PartitionSpec())

    def put(value: jax.Array, place: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(value.shape, place, np.asarray(value).__getitem__)

    values = {path: put(value, places[path]) for path, value in model.parameters.items()}
    buffers = {path: put(value, whole) for path, value in model.buffers.items()}
    return dataclasses.replace(model, parameters=values, buffers=buffers, mesh=mesh)


def vocabulary() -> Any:
    """Words are numbers."""
    made = SimpleNamespace(
        eos_id=EOS, vocab_size=100, decode_rows=lambda rows: [" ".join(map(str, row)) + "é" for row in rows]
    )
    made.decode_batch = lambda *arguments: Vocabulary.decode_batch(made, *arguments)
    return made


def evaluated(mesh: Mesh, rows: str) -> dict[str, Any]:
    """Rows over the same users: ranks and items, texts; and bits of what they are made of.

    Args:
      rows: "some", or "all" kinds, whose programs take their time to compile.
    """
    windows, trie = Recorded(), build_trie()
    trained = [on(mesh, lively(build), build) for build in (build_encoder, build_user_llm)]
    encoder, llm = map(on_own_devices, trained)
    scores = encoder_scores(encoder)
    shared = dict(batch_size=BATCH, mesh=mesh)
    found: dict[str, Any] = {}

    def ranked(row: str, of: Any) -> None:
        found[row] = rank_by_scores(of, windows, exclude_seen=True, **shared)

    def searched(row: str, source: Any = windows, read: Any = None, **options: Any) -> None:
        options = dict(trie=trie, eos_id=EOS, num_beams=5, max_steps=4, exclude_seen=True) | options
        beams = user_llm_beams(llm, **options)
        found[row] = rank_by_beams(beams, source, trie=trie, description=row, read=read, **shared)

    def written(texts: Any) -> list[str]:
        return write_texts(texts, windows, vocabulary(), description="texts", **shared)

    ranked("popularity", popularity_scores(np.arange(13) % 5))
    found["read by one row"] = sorted({*windows.read})
    ranked("encoder", scores)
    searched("beams")
    searched("shuffled", ShuffledContexts(windows))
    found["words"] = written(lambda batch: batch["history/item"])
    if rows == "all":
        ranked("two encoders", mean_of(scores, scores))
        ranked("exact", user_llm_scores(llm, trie=trie, eos_id=EOS))
        searched("fused", prior=log_prior(scores, [4, 11], 0.05), weight=0.4)
        read = lambda tokens: tokens[..., 0] % 12  # noqa: E731  # as good as any
        searched("free beams", read=read, constrained=False)
        found["texts"] = written(user_llm_texts(llm, eos_id=EOS, max_new_tokens=4))
    share = Share(USERS, BATCH, mesh)
    logits = [np.asarray(share.own(scores(batch).all()))[real] for batch, real in share.batches(windows, "logits")]
    found["logits"] = share.whole(np.concatenate(logits))
    found["devices"] = encoder.mesh.size
    found["losses"] = mean_metrics(autoregressive_objective(chunk_rows=16), windows, BATCH)(trained[0])
    return found


def nan_of_one(mesh: Mesh) -> str:
    """What is said of a score of user 3 that is no number."""

    def scores(batch: Any) -> ItemScores:
        return ItemScores.dense(np.where(batch["user"][:, None] == 3, np.nan, np.zeros((len(batch["user"]), 13))))

    try:
        rank_by_scores(scores, Windows(USERS), batch_size=BATCH, mesh=mesh, exclude_seen=False)
    except ValueError as error:
        return str(error)
    return ""


def plain(found: Any) -> Any:
    """For JSON, to the bit."""
    if isinstance(found, np.ndarray):
        return [str(found.dtype), found.shape, found.tobytes().hex()]
    if isinstance(found, tuple | list):
        return [plain(one) for one in found]
    return {name: plain(one) for name, one in found.items()} if isinstance(found, dict) else found


def main(port: str, process: str, count: str, rows: str, *cuts: str) -> None:
    """Evaluates on meshes that are cut so: data, fsdp, tensor, as 2,1,1."""
    processes.start(f"localhost:{port}", int(count), int(process))
    found: dict[str, Any] = {}
    for cut in cuts:
        mesh = meshes.make_mesh(dict(zip(meshes.AXES, map(int, cut.split(",")), strict=True)))
        found[cut] = {
            "found": plain(evaluated(mesh, rows)),
            "refused": nan_of_one(mesh),
            "share": Share(USERS, BATCH, mesh).ids.tolist(),
            "waits for nobody": meshes.own_mesh(mesh) != mesh,
        }
    print(json.dumps(found))
    processes.wait_for_all("end")
    processes.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Part llm: training steps of a language model from scratch and of a frozen one that reads users, and its beams."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.llm_files import FACTS
from benchmarks.llm_report import (
    BFLOAT16,
    FIRST_LAYER,
    PLAIN,
    SEARCHES,
    STATES,
    TORCH,
    TORCH_BF16,
    TORCH_FIRST_LAYER,
    TRIMMED,
    add_speedups,
)
from benchmarks.llm_workload import frozen
from benchmarks.protocol import REPOSITORY, ContenderFailed, main_python, torch_python
from benchmarks.turns import Entry, measure_in_turns

USERS = 8
_MALLOC = {"malloc": "tuned"}
_BFLOAT16 = {"compute.dtype": "bfloat16", "compute.frozen_dtype": "bfloat16"}
_TRIM = {"llm.trim_vocabulary": True}


def measure_llm(llm: Path | None, data_dir: Path, *, rounds: int) -> dict[str, Any]:
    """Rows of `scratch`, `pretrained` and `beams`, and what they were measured on.

    Args:
      llm: GGUF file or Hugging Face folder; None: a small one with random weights.
      data_dir: where the built dataset is kept.
    """
    with tempfile.TemporaryDirectory() as name:
        facts = _make_files(Path(name), data_dir, llm)
        shared = {"folder": name, "facts": facts}
        layers = facts["language_model"]["num_layers"]
        first, rivals = pretrained_entries(facts)
        beams, searches = beam_entries(facts)
        found = {
            "scratch": measure_in_turns(*scratch_entries(facts), shared, _MALLOC, rounds),
            "pretrained": measure_in_turns(first, rivals, shared, _MALLOC, rounds),
            "beams": measure_in_turns(beams, searches, shared, _MALLOC, 2 * rounds),
        }
    add_speedups(found["pretrained"])
    return {
        "dataset": facts["data"]["data.dataset"],
        "llm": llm.name if llm else "random",
        "layers": layers,
        "first_layer": first_layer(layers),
        "differing": differing(found["beams"]),
        **found,
    }


def _make_files(folder: Path, data_dir: Path, llm: Path | None) -> dict[str, Any]:
    """What `benchmarks.llm_files` says of the files that it makes."""
    arguments = [str(folder), str(data_dir), *([str(llm)] if llm else [])]
    command = [sys.executable, "-m", "benchmarks.llm_files", *arguments]
    if code := subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL).returncode:
        raise ContenderFailed(f"benchmarks.llm_files ended with {code}")
    return json.loads((folder / FACTS).read_text())


def first_layer(layers: int) -> int:
    """Of a language model of so many, the first that reads users where the lower ones are left alone: 12 of 18."""
    return layers * 2 // 3


def scratch_entries(facts: dict[str, Any]) -> tuple[Entry, Sequence[Entry]]:
    """The stages `llm` and `user_llm` of a small model from scratch, all of it trained."""

    def entry(stage: str, dtype: str) -> Entry:
        overrides = {**facts["data"], "compute.dtype": dtype}
        return Entry(f"ours: stage {stage}, {dtype}", main_python, "jax_user_llm", _options(stage, overrides))

    first, *others = (entry(stage, dtype) for stage in ("user_llm", "llm") for dtype in ("float32", "bfloat16"))
    return first, others


def pretrained_entries(facts: dict[str, Any]) -> tuple[Entry, Sequence[Entry]]:
    """The frozen language model: ours as it is and with what spares it work, each on top of the last; PyTorch's."""
    base, first = frozen(facts["data"], facts["llm"]), first_layer(facts["language_model"]["num_layers"])
    upper = {**base, "integration.first_layer": first}
    ours = (
        (PLAIN, base),
        (FIRST_LAYER, {**upper, "integration.stored_gib": 0}),
        (TRIMMED, {**upper, "integration.stored_gib": 0, **_TRIM}),
        (STATES, {**upper, **_TRIM}),
        (BFLOAT16, {**upper, **_TRIM, **_BFLOAT16}),
    )
    theirs = (
        (TORCH, base, 0),
        (TORCH_FIRST_LAYER, base, first),
        (TORCH_BF16, {**base, **_BFLOAT16}, first),
    )
    reference, *rest = (
        Entry(name, main_python, "jax_user_llm", _options("user_llm", overrides)) for name, overrides in ours
    )
    peers = [
        Entry(name, torch_python, "torch_user_llm", {"overrides": overrides, "first_layer": layer})
        for name, overrides, layer in theirs
    ]
    return reference, [peers[0], rest[0], peers[1], *rest[1:], peers[2]]


def beam_entries(facts: dict[str, Any]) -> tuple[Entry, Sequence[Entry]]:
    """Beams of the same models."""
    base, first = frozen(facts["data"], facts["llm"]), first_layer(facts["language_model"]["num_layers"])
    variants = (base, {**base, **_TRIM}, {**base, **_TRIM, "integration.first_layer": first})
    reference, *rest = (
        Entry(name, main_python, "jax_user_llm", {**_options("user_llm", overrides), "users": USERS})
        for name, overrides in zip(SEARCHES, variants, strict=True)
    )
    return reference, rest


def differing(rows: Sequence[dict[str, Any]]) -> dict[str, int] | None:
    """Of the users, how many have another list from the trimmed model than from the plain one, and another set."""
    lists = {row["contender"]: row.pop("titles", None) for row in rows}
    plain, trimmed = (lists.get(name) for name in SEARCHES[:2])
    if plain is None or trimmed is None:
        return None
    pairs = list(zip(plain, trimmed, strict=True))
    return {
        "users": len(pairs),
        "lists": sum(ours != others for ours, others in pairs),
        "sets": sum(set(ours) != set(others) for ours, others in pairs),
    }


def _options(stage: str, overrides: dict[str, Any]) -> dict[str, Any]:
    return {"stage": stage, "overrides": overrides}

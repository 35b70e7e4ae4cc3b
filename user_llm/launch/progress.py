"""How far a run is, from the metrics it writes."""

import json
import os
from pathlib import Path

_TAIL_BYTES = 4096


def stage_progress(workdir: Path) -> str:
    """The stage that a run of `user_llm.main` trains and its newest step, as "encoder 120/600"; "" where none does."""
    files = sorted(workdir.glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    if not files:
        return ""
    stage = files[-1].parent.name
    step = _last_step(files[-1])
    try:
        steps = json.loads((workdir / "config.json").read_text())["training"][stage]["steps"]
    except (OSError, KeyError, ValueError):
        return ""
    return "evaluation" if step == steps else f"{stage} {step}/{steps}"


def _last_step(metrics: Path) -> int:
    with metrics.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):  # half a line: the first of the tail, or one being written
            continue
    return 0

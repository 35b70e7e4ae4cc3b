"""How long each call of a sweep's launcher took, for the head of its report."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from user_llm.files import replacing
from user_llm.launch.kept import kept

STARTS = "starts.json"


def read_starts(out: Path) -> list[dict[str, Any]]:
    """What `noted` has added in the folder `out`.

    Raises:
      ConfigError: its file is damaged.
    """
    return kept(out / STARTS, _parsed, "delete it; only the times of earlier calls are lost") or []


def _parsed(text: str) -> list[dict[str, Any]]:
    return [
        {**start, "seconds": float(start["seconds"]), "jobs": int(start["jobs"]), "stopped": bool(start["stopped"])}
        for start in json.loads(text)
    ]


@contextlib.contextmanager
def noted(out: Path, jobs: int) -> Iterator[None]:
    """Adds what happens inside to `starts.json`: `seconds`, `jobs`, and whether it was `stopped` by Ctrl-C."""
    starts = read_starts(out)
    before, begun, stopped = time.time(), time.monotonic(), False
    try:
        yield
    except KeyboardInterrupt:
        stopped = True
        raise
    finally:
        starts.append(
            {"began": int(before), "seconds": round(time.monotonic() - begun, 1), "jobs": jobs, "stopped": stopped}
        )
        with replacing(out / STARTS) as partial:
            partial.write_text(json.dumps(starts, indent=1) + "\n")

"""How long each call of a sweep's launcher took, for the head of its report."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from user_llm.files import replacing

STARTS = "starts.json"


@contextlib.contextmanager
def noted(out: Path, jobs: int) -> Iterator[None]:
    """Adds what happens inside to `starts.json`: `seconds`, `jobs`, and whether it was `stopped` by Ctrl-C."""
    before, begun, stopped = time.time(), time.monotonic(), False
    try:
        yield
    except KeyboardInterrupt:
        stopped = True
        raise
    finally:
        path = out / STARTS
        starts = json.loads(path.read_text()) if path.is_file() else []
        starts.append(
            {"began": int(before), "seconds": round(time.monotonic() - begun, 1), "jobs": jobs, "stopped": stopped}
        )
        with replacing(path) as partial:
            partial.write_text(json.dumps(starts, indent=1) + "\n")

"""What the machine is, and how many matrix products it does in a second."""

import os
import platform
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.protocol import Contender, Unavailable, main_python, torch_python

BFLOAT16 = ("avx512_bf16", "amx_bf16")  # flags of x86 CPUs that multiply bfloat16; all others emulate it
SIZE, ROUNDS = 2048, 9


def machine() -> dict[str, Any]:
    """CPU, cores, caches, and whether it multiplies bfloat16."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "caches": _caches(Path("/sys/devices/system/cpu/cpu0/cache")),
        "bfloat16": {flag: flag in flags for flag in BFLOAT16},
        "python": platform.python_version(),
        "load_at_start": os.getloadavg()[0],
    }


def _caches(folder: Path) -> dict[str, str]:
    """Size of the first core's L2 and L3, as Linux writes it; L3 is often shared."""
    found = {}
    for cache in sorted(folder.glob("index*")):
        level = f"L{(cache / 'level').read_text().strip()}"
        if level in ("L2", "L3"):
            found[level] = (cache / "size").read_text().strip()
    return found


def matmul_peaks() -> dict[str, dict[str, float]]:
    """Library → dtype → GFLOP/s of square products of `SIZE`, the median of `ROUNDS`, on all cores."""
    peaks: dict[str, dict[str, float]] = {}
    for library, python in (("jax", main_python), ("torch", torch_python)):
        for dtype in ("float32", "bfloat16"):
            options = {"dtype": dtype, "size": SIZE}
            try:
                with Contender(python(), f"benchmarks.contenders.{library}_matmul", options, "tuned") as contender:
                    seconds = median(contender.round()["seconds"] for _ in range(ROUNDS))
            except Unavailable as error:
                print(f"{library} is left out of the machine's peak: {error}", file=sys.stderr, flush=True)
                break
            peaks.setdefault(library, {})[dtype] = round(2 * SIZE**3 / seconds / 1e9, 1)
    return peaks


def peak(peaks: dict[str, dict[str, float]], dtype: str) -> float:
    """GFLOP/s that a program of `dtype` could reach: the best library's. bfloat16 may be multiplied as float32."""
    return max(speeds[name] for speeds in peaks.values() for name in {dtype, "float32"})

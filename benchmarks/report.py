"""Results of a run as tables in Markdown, and against the targets of the project."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from benchmarks import llm_report, scale_report, serving_report
from benchmarks.machine import SIZE, peak
from benchmarks.markdown import number, of_the_peak, skipped, table
from benchmarks.protocol import Contender
from benchmarks.quality_report import render_quality

REFERENCE, DENSE = "ours: chunked loss, microbatches of 32", "ours: dense logits"
CHUNKED = "ours: chunked loss"
TORCH_EAGER, TORCH_COMPILE = "PyTorch", "torch.compile"
TORCH_CHUNKED, RECTOOLS = "torch.compile + linear_cross_entropy", "RecTools SASRec softmax"
BFLOAT16 = "ours: chunked loss, microbatches of 32, bfloat16"
TORCH_EAGER_BF16, TORCH_COMPILE_BF16 = "PyTorch, bfloat16", "torch.compile, bfloat16"
RECTOOLS_BF16, RECTOOLS_WIDE = f"{RECTOOLS}, bf16-mixed", f"{RECTOOLS}, feed-forward layers 512 wide"
COLUMNS, ARROW = "ours: windows of mapped columns", "datasets: mapped Arrow, a row a user"
RECTOOLS_DATASET = "pandas + RecTools Dataset.construct"
BUILD, PANDAS = "ours: user-llm build", RECTOOLS_DATASET
BEAMS, TRANSFORMERS = "ours: beams in a trie", "transformers generate with prefix_allowed_tokens_fn"

ARRAYS, SEQIO = "windows", "seqio"  # roads of the data pipeline, by the names `config.data.reader` has for them

TARGETS = (  # contender, batch sizes, key of its ratio, at most
    (RECTOOLS, (128, 512), "time_ratio", 0.35),
    (TORCH_COMPILE, (128, 512), "time_ratio", 0.85),
    (RECTOOLS, (512,), "memory_ratio", 0.08),
)
PIPELINE_TARGET = 3e6  # windows a second on one core
BEAM_TARGET = 0.40
STATIC_TARGET = 1.2


def row(
    name: str, setting: Mapping[str, Any], rounds: list[dict], reference: list[dict], contender: Contender
) -> dict[str, Any]:
    """A contender's result; its rounds were taken in turns with those of the reference.

    `time_ratio` is the median over the rounds of reference / contender, `memory_ratio` of their peaks, so that
    less than 1 says that the reference needs less.
    """
    pairs = zip(reference, rounds, strict=True)
    return {
        "contender": name,
        **setting,
        "seconds": [round(answer["seconds"], 4) for answer in rounds],
        "peak_gb": round(rounds[-1]["peak_gb"], 3),
        "peak_above_imports_gb": round(rounds[-1]["peak_above_imports_gb"], 3),
        "time_ratio": round(median(ours["seconds"] / theirs["seconds"] for ours, theirs in pairs), 3),
        "memory_ratio": round(reference[-1]["peak_gb"] / rounds[-1]["peak_gb"], 3),
        "value": round(rounds[-1]["value"], 4),
        "versions": contender.versions,
        **contender.facts,
    }


def render(results: dict[str, Any]) -> str:
    """The tables of a run, Markdown; a run may have measured one part alone."""
    sections = _machine(results)
    if "pipeline" in results:
        sections += [
            "**Data pipeline**: windows of 50 events, batch 8,192, 20 M events in memory, one core.",
            table(
                ["malloc", "reader", "what", "thousand examples/s"],
                [
                    [row["malloc"], row["road"], row["reads"], f"{row['examples_per_second'] / 1e3:,.1f}"]
                    for row in results["pipeline"]
                ],
            ),
        ]
    costs = ["malloc", "contender", "seconds", "peak GB", "… above imports", "ours/its time", "ours/its peak"]
    if "encoder" in results:
        sections += [
            "**Encoder step**: forward, backward, optimizer; 26,744 items, S = 50, 6 layers of width 128.",
            table(
                ["batch", *costs, "GFLOP", "share of peak"],
                [[str(row["batch_size"]), *_costs(row), *_shares(row)] for row in results["encoder"]],
            ),
        ]
    if "beams" in results:
        sections += [
            "**Beam search**: 8 users, 10 beams, 27,278 titles of up to 15 tokens; 6 layers of width 384, 32k.",
            table(costs, [_costs(row) for row in results["beams"]]),
        ]
    if "llm" in results:
        sections += llm_report.sections(results["llm"])
    if "trie" in results:
        sections += [
            "**Trie**: 8 users, 10 beams, titles of up to 15 words by Zipf's law; 6 layers of width 384, 32k.",
            table(_TRIE, [_of_trie(row) for row in results["trie"]]),
            "**Trie, beside STATIC**: 8 users, 10 beams, items of 8 random codes of 2,048; 2 layers of width 128.",
            table(_STATIC, [_of_static(row) for row in results["trie"]]),
        ]
    if "serving" in results:
        sections += serving_report.sections(results["serving"])
    if "scale" in results:
        sections += scale_report.sections(results["scale"])
    if "store" in results:
        sections += [
            "**Store**: users with full histories, one process; reading in batches of 1,000.",
            table(_STORE, [_stored(row) for row in results["store"]]),
        ]
    if "quality" in results:
        sections.append(render_quality(results["quality"]))
    if "data" in results:
        sections += [
            "**Reading**: windows of 50 events and a label from files in the page cache, batch 8,192, one core.",
            table(_READING, [_reading(row) for row in results["data"]["reading"]]),
            "**Building**: from raw files, whole processes.",
            table(_BUILDING, [_building(row) for row in results["data"]["building"]]),
        ]
    if targets := _targets(results):
        sections += ["**Targets**", "\n".join(targets)]
    return "\n\n".join(sections)


def add_shares(results: dict[str, Any]) -> None:
    """Writes into every row of known FLOPs which share of the machine's peak it reached."""
    rows = [*results.get("encoder", []), *llm_report.steps(results.get("llm", {}))]
    for row in rows:
        if "flops" in row:
            most = peak(results["machine"]["matmul_gflops"], row["dtype"])
            row["share_of_peak"] = round(row["flops"] / median(row["seconds"]) / 1e9 / most, 3)


def _shares(row: dict[str, Any]) -> list[str]:
    return [] if "skipped" in row else of_the_peak(row)


def _machine(results: dict[str, Any]) -> list[str]:
    machine = results["machine"]
    caches = "".join(f", {name} {size}" for name, size in machine["caches"].items())
    flags = ", ".join(f"{'has' if there else 'no'} {flag}" for flag, there in machine["bfloat16"].items())
    lines = [f"{machine['cpu']}, {machine['cores']} cores{caches}; {flags}; {results['date']}."]
    if speeds := machine.get("matmul_gflops"):
        lines += [
            f"**Peak**: products of square matrices of {SIZE} rows, GFLOP/s.",
            table(
                ["library", "float32", "bfloat16"],
                [[library, *(f"{speed:,.0f}" for speed in dtypes.values())] for library, dtypes in speeds.items()],
            ),
        ]
    return lines


def _costs(row: dict[str, Any]) -> list[str]:
    if "skipped" in row:
        return [row["malloc"], row["contender"], skipped(row)]
    return [
        row["malloc"],
        row["contender"],
        f"{median(row['seconds']):.2f}",
        f"{row['peak_gb']:.2f}",
        f"{row['peak_above_imports_gb']:.2f}",
        f"{row['time_ratio']:.2f}",
        f"{row['memory_ratio']:.3f}",
    ]


_TRIE = (
    *("titles", "million nodes", "built in s", "peak GB", "a title added in s", "most children, level by level"),
    *("step ms", "free step ms", "over free", "fused, over that", "a dictionary's mask, ms a step"),
)


def _of_trie(row: dict[str, Any]) -> list[str]:
    cells = [
        f"{row['titles']:,}",
        f"{row['nodes'] / 1e6:,.2f}",
        f"{row['build_seconds']:,.1f}",
        f"{row['peak_gb']:.1f}",
        f"{row['add_seconds']:.2f}",
    ]
    cells.append(", ".join(f"{width:,}" for width in row["widest"]))
    cells += [
        f"{row['step_ms']:,.1f}",
        f"{row['free_step_ms']:,.1f}",
        f"{row['over_free']:+.0%}",
        f"{row['fused_over']:+.0%}",
    ]
    return [*cells, number(row.get("dictionary_step_ms"), 0)]


_STATIC = ("items", "STATIC step ms", "our step ms", "ours/STATIC")


def _of_static(row: dict[str, Any]) -> list[str]:
    steps = (f"{row[name]:,.2f}" for name in ("static_step_ms", "ours_on_its_step_ms"))
    return [f"{row['titles']:,}", *steps, f"{row['over_static']:.2f}"]


_STORE = (
    *("where", "users", "vectors", "record KB", "file KB a user", "encoded/s", "written/s", "read/s"),
    *("appended/s, one by one", "appended/s, 1,000 at once", "peak MB more"),
)


def _stored(row: dict[str, Any]) -> list[str]:
    slots, width = row["vectors"]
    speeds = [f"{row[f'{name}_per_second']:,}" for name in
              ("encoded", "written", "read", "appended", "appended_together")]  # fmt: skip
    sizes = [f"{row[name] / 1e3:.1f}" for name in ("record_bytes", "file_bytes_per_user")]
    return [row["where"], f"{row['users']:,}", f"{slots} of {width}", *sizes, *speeds, f"{row['peak_mb_more']:,}"]


_READING = (
    "million events",
    "malloc",
    "contender",
    "open s",
    "index s",
    "peak MB",
    "private MB, open",
    "private MB, reading",
    "million windows/s",
    "disk bytes/event",
)
_BUILDING = ("files", "thousand rows", "contender", "s", "thousand rows/s", "peak MB")


def _reading(row: dict[str, Any]) -> list[str]:
    setting = [f"{row['events'] / 1e6:,.0f}", row["malloc"], row["contender"]]
    if "skipped" in row:
        return [*setting, skipped(row)]
    windows = row.get("windows_per_second")
    return [
        *setting,
        f"{row['open_seconds']:.3f}",
        number(row.get("index_seconds"), 3),
        number(row["peak_mb"], 0),
        number(row["private_open_mb"], 1),
        number(row.get("private_reading_mb"), 1),
        number(windows and windows / 1e6, 3),
        number(row.get("bytes_per_event"), 2),
    ]


def _building(row: dict[str, Any]) -> list[str]:
    setting = [row["files"], f"{row['rows'] / 1e3:,.0f}", row["contender"]]
    if "skipped" in row:
        return [*setting, skipped(row)]
    return [
        *setting,
        f"{median(row['seconds']):.1f}",
        f"{row['rows_per_second'] / 1e3:,.0f}",
        f"{row['peak_mb']:,.0f}",
    ]


def _targets(results: dict[str, Any]) -> list[str]:
    lines = []
    for row in results.get("pipeline", []):
        if (row["road"], row["reads"]) == (ARRAYS, "windows"):
            label = f"windows/s on one core, {row['malloc']} malloc"
            lines.append(_target(label, row["examples_per_second"], PIPELINE_TARGET, "≥"))
    for name, batch_sizes, key, limit in TARGETS:
        for row in results.get("encoder", []):
            if row["contender"] == name and row["batch_size"] in batch_sizes and "skipped" not in row:
                what = "step time" if key == "time_ratio" else "peak memory"
                label = f"{what} ours / {name}, batch {row['batch_size']}, {row['malloc']} malloc"
                lines.append(_target(label, row[key], limit, "≤"))
    for row in results.get("beams", []):
        if row["contender"] == TRANSFORMERS and "skipped" not in row:
            label = f"beam search, time ours / {TRANSFORMERS}, {row['malloc']} malloc"
            lines.append(_target(label, row["time_ratio"], BEAM_TARGET, "≤"))
    for row in results.get("trie", []):
        label = f"a step of beams, time ours / STATIC, {row['titles']:,} items"
        lines.append(_target(label, row["over_static"], STATIC_TARGET, "≤"))
    lines += [_target(*target) for target in serving_report.targets(results.get("serving", []))]
    return lines


def _target(label: str, value: float, limit: float, relation: str) -> str:
    met = {"≥": value >= limit, "≤": value <= limit, ">": value > limit}[relation]
    return f"- {'met' if met else 'MISSED'}: {label}: {value:,.3g} (target {relation} {limit:,.3g})"

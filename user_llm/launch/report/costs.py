"""What the rows of a table cost: texts seen, seconds of training, FLOPs."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from user_llm.config import whole_titles
from user_llm.launch.board import duration
from user_llm.launch.report.names import DATASETS, TASKS
from user_llm.launch.report.results import Results
from user_llm.launch.resolve import resolve
from user_llm.launch.runs import EFFICIENCY, Run
from user_llm.launch.sweeps import TRAINED, Cell


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one run, without those that it needs.

    Attributes:
        examples: that it learnt from; of an encoder windows, of a language model texts with whole answers.
        seconds: of training, by the run's own clock.
        flops: 6 N D.
    """

    examples: int
    seconds: float
    flops: float


def cost_of(run: Run, results: Results) -> Cost | None:
    """What a run cost to train; None where it is not finished, or trains nothing."""
    found = results.of(run)
    if found is None or run.program == EFFICIENCY:
        return None
    stages = found.get("training", {})
    clocks = [line["seconds"] for stage in stages for line in results.metrics(run, stage, "train")[-1:]]
    return Cost(examples_of(run), sum(clocks), sum(stage["flops_6nd"] for stage in stages.values()))


def examples_of(run: Run) -> int:
    """Windows that an encoder is trained on, or texts with whole answers that a language model is."""
    config = resolve(run.config, run.values(Path()))
    stage = config.stages[-1]
    texts = whole_titles(config) if stage == "user_llm" else 1
    return config.training[stage].steps * config.training[stage].batch_size * texts


def costs(cells: Sequence[Cell], results: Results) -> Iterator[str]:
    """A table of what each row of some cells cost, and who has seen fewer texts than others; Markdown."""
    groups: dict[tuple[str, str], dict[str, Run]] = {}
    for cell in cells:
        if cell.task and cell.runs and cell.source in TRAINED:  # counts cost nothing, other answers nothing more
            groups.setdefault((cell.dataset, cell.task), {}).setdefault(cell.column, cell.runs[0])
    lines, fewer = [], []
    for (dataset, task), runs in groups.items():
        known = {column: cost for column, run in runs.items() if (cost := cost_of(run, results))}
        place = f"{DATASETS[dataset]}, {TASKS[task]}"
        lines += [f"| {place} | {column} | {_figures(cost)} |" for column, cost in known.items()]
        texts = {column: cost.examples for column, cost in known.items() if ".alone." not in runs[column].label}
        most = max(texts.values(), default=0)
        short = [f"{column} ({count:,})" for column, count in texts.items() if count < most]
        fewer += [f"{place}: {', '.join(short)}, where the others saw {most:,}"] if short else []
    if not lines:
        return
    if fewer:
        yield f"Not all rows learnt from as many texts. {'; '.join(fewer)}."
    yield "<details><summary>What these rows cost</summary>"
    head = "| | | learnt from | training | FLOPs, 6 N D |\n| --- | --- | ---: | ---: | ---: |"
    yield "\n".join([head, *lines])
    yield (
        "Encoders learn from windows, language models from texts with whole answers; what several rows start from is a "
        "run of its own (provenance)."
    )
    yield "</details>"


def _figures(cost: Cost) -> str:
    return f"{cost.examples:,} | {duration(cost.seconds)} | {cost.flops:.2g}"

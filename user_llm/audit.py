"""The auditor: looks for leaks in the built dataset and the actual batches of an experiment (`main --audit`)."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from user_llm.config import RECALL_DEPTH
from user_llm.data.pipeline import TrainBatches, evaluation_batches
from user_llm.data.windows import Windows
from user_llm.evaluation import leaks
from user_llm.evaluation.baselines import Scores, category_popularity_scores, popularity_scores
from user_llm.evaluation.evaluator import Subset, rank_by_scores
from user_llm.evaluation.leaks import Finding, leak, noteworthy
from user_llm.experiment import Experiment

_TRAIN_BATCHES = 20  # that are looked at
_MAX_PROMPTS = 20_000  # windows a split whose prompts are looked at, evenly spread
_REORDERINGS = 5  # of events of equal time
_TIE_USERS = 5_000  # evenly spread, whom these are measured on

_STYLES = {leaks.PASS: "green", leaks.EXCEPTION: "yellow", leaks.FAIL: "bold red"}


def audit(experiment: Experiment, rankers: Mapping[str, Scores] | None = None) -> list[Finding]:
    """Checks an experiment for leaks, and for what a reader of its results should know.

    Args:
      rankers: more recommenders (name → scores `[B, I+1]`) whose Recall@10 is measured under other orders of equal
        times, besides the popularity rows.
    """
    splits = ("train", "validation", "test") if experiment.config.data.validation else ("train", "test")
    windows = {split: experiment.windows(split) for split in splits}
    labels = {split: of.label_positions(np.arange(len(of))) for split, of in windows.items()}
    held_out = np.concatenate([labels[split] for split in splits[1:]])
    return [
        *_timelines(experiment),
        *_histories(experiment, windows, labels),
        *_prompts(experiment, splits),
        *_splits(experiment, labels, held_out),
        *_duplicates(experiment, labels),
        *_statistics(experiment, labels, held_out),
        *_other_runs(experiment, held_out),
        *_ties(experiment, labels["test"], rankers or {}),
    ]


def _timelines(experiment: Experiment) -> Iterator[Finding]:
    table = experiment.table
    yield leak(
        "events in time order",
        leaks.disorder(table.timestamp, table.offsets),
        len(table.item),
        "an event is earlier than the one before it: a history could hold what is later than its label",
    )
    repeated = len(table.user_ids) - len(set(table.user_ids))
    yield leak("one record a user", repeated, table.num_users, "the same user in several records, or shards")


def _histories(
    experiment: Experiment, windows: Mapping[str, Windows], labels: Mapping[str, np.ndarray]
) -> Iterator[Finding]:
    """Histories of actual batches against the events before the label, looked up again."""
    table, wrong, total = experiment.table, 0, 0
    for split, of in windows.items():
        batch_size = experiment.config.evaluation.batch_size
        if split == "train":
            stream = TrainBatches(of, experiment.config.training.encoder.batch_size, experiment.config.seed)
            parts: Iterable[np.ndarray] = (stream.ids(step) for step in range(_TRAIN_BATCHES))
        else:
            parts = (np.arange(start, min(start + batch_size, len(of))) for start in range(0, len(of), batch_size))
        for ids in parts:
            batch = of.gather(ids)
            right = np.ones(len(ids), bool)
            for column in ("item", "rating"):
                values = getattr(table, column)
                expected = leaks.expected_history(values, table.offsets, labels[split][ids], of.history_length)
                right &= (batch[f"history/{column}"] == expected).all(axis=1)
                right &= batch[f"label/{column}"] == values[labels[split][ids]]
            wrong, total = wrong + int((~right).sum()), total + len(ids)
    yield leak(
        "histories end before their label",
        wrong,
        total,
        "a history of an actual batch is not the events before its label, and nothing else",
    )


def _prompts(experiment: Experiment, splits: tuple[str, ...]) -> Iterator[Finding]:
    if not {"llm", "user_llm"} & set(experiment.config.stages):
        return
    leaking = innocent = total = 0
    for split in splits:
        source = Subset.evenly(experiment.source(split), _MAX_PROMPTS)
        for batch in evaluation_batches(source, experiment.config.evaluation.batch_size):
            real = batch["weight"] > 0
            event = (batch["label/item"], batch["label/rating"])
            asked = event if experiment.config.task == "review_generation" else ()
            again, _, _ = experiment.prompts.build(batch["history/item"], *asked)
            leaks_here, seems = leaks.answers_in_prompts(batch, again)
            leaking += int((leaks_here & real).sum())
            innocent += int((seems & real).sum())
            total += int(real.sum())
    check = "the answer in its prompt"
    if leaking:
        yield leak(check, leaking, total, "the prompt holds the answer, and not because the history does")
    else:
        detail = "the answer's words stand in the prompt because the history (or the event asked about) holds them"
        yield noteworthy(check, innocent, total, detail)


def _splits(experiment: Experiment, labels: Mapping[str, np.ndarray], held_out: np.ndarray) -> Iterator[Finding]:
    offsets = experiment.table.offsets
    yield leak(
        "held-out events in training",
        leaks.learnt_too_late(labels["train"], held_out, offsets),
        len(held_out),
        "a test or validation event is a label, or in a history, of a training window",
    )
    tested = len(labels["test"]) - len(np.unique(np.searchsorted(offsets, labels["test"], side="right")))
    yield leak("one test event a user", tested, len(labels["test"]), "a user has several test events")


def _duplicates(experiment: Experiment, labels: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    everything = np.concatenate(list(labels.values()))
    repeated = len(everything) - len(np.unique(everything))
    yield leak("every window once", repeated, len(everything), "the same window twice, or in two splits")
    table, length = experiment.table, experiment.config.data.history_length
    train, test = (leaks.window_hashes(table.item, table.offsets, labels[split], length) for split in ("train", "test"))
    yield noteworthy(
        "test windows like a training window",
        int(np.isin(test, train).sum()),
        len(test),
        "another user has the same items in the same order, label included, in training",
    )


def _statistics(experiment: Experiment, labels: Mapping[str, np.ndarray], held_out: np.ndarray) -> Iterator[Finding]:
    table = experiment.table
    counts = leaks.recount(table.item, held_out, table.catalogue.num_items)
    yield leak(
        "popularity without held-out events",
        int((experiment.item_counts != counts).sum()),
        len(counts),
        "items whose popularity counts differ from a count without test and validation events",
    )
    yield leak(
        "vocabulary without held-out reviews",
        int(np.isin(experiment.vocabulary_events, held_out).sum()),
        len(experiment.vocabulary_events),
        "test or validation reviews that the vocabulary was trained on",
    )
    cold = counts[table.item[labels["test"]]] == 0
    yield noteworthy("test items never in training", int(cold.sum()), len(cold), "nobody can have learnt these")


def _other_runs(experiment: Experiment, held_out: np.ndarray) -> Iterator[Finding]:
    """What another run has trained, that this one starts from."""
    config = experiment.config
    named = {"encoder": config.encoder.checkpoint, "llm": config.llm.checkpoint}
    runs = {
        "encoder": Path(named["encoder"]),
        "llm": Path(named["llm"]).parent.parent,  # <workdir>/llm/huggingface
    }
    for stage, workdir in runs.items():
        if not named[stage] or not (workdir / "config.json").is_file() or not (workdir / stage).is_dir():
            continue  # nothing borrowed, or not from a run of ours
        theirs = ConfigDict(json.loads((workdir / "config.json").read_text()))
        windows = Windows(
            experiment.table,
            history_length=theirs.data.history_length,
            split="train",
            min_history=theirs.data.min_history or None,
            validation=theirs.data.validation,
        )
        learnt = windows.label_positions(np.arange(len(windows)))
        yield leak(
            f"held-out events in the training of the borrowed {stage}",
            leaks.learnt_too_late(learnt, held_out, experiment.table.offsets),
            len(held_out),
            f"test or validation events that {workdir} has trained on",
        )


def _ties(experiment: Experiment, labels: np.ndarray, rankers: Mapping[str, Scores]) -> Iterator[Finding]:
    """How many labels are last only by the source's order, and what another order would do to Recall@10."""
    table, config = experiment.table, experiment.config.evaluation
    tied = leaks.tied_labels(table.timestamp, labels)
    recalls: dict[str, list[float]] = {}
    for seed in range(_REORDERINGS if tied else 0):
        order = leaks.reordered(table.timestamp, table.offsets, seed)
        other = dataclasses.replace(table, item=table.item[order], rating=table.rating[order])
        counts = experiment.count_items(other)
        rows = {
            "popularity": popularity_scores(counts),
            "popularity in the latest category": category_popularity_scores(counts, table.catalogue.item_categories),
            **rankers,
        }
        test = Subset.evenly(experiment.windows("test", other), _TIE_USERS)
        options = dict(batch_size=config.batch_size, exclude_history=config.exclude_history, description="ties")
        for name, scores in rows.items():
            ranks, _ = rank_by_scores(scores, test, **options)
            recalls.setdefault(name, []).append(float((ranks <= RECALL_DEPTH).mean()))
    detail = "the label has the time of the event before it, so that the source's order makes it the last"
    if recalls:
        spread = "; ".join(f"{name} {min(values):.3f} to {max(values):.3f}" for name, values in recalls.items())
        detail += f"; Recall@{RECALL_DEPTH} over {_REORDERINGS} other orders of equal times: {spread}"
    yield noteworthy("test labels that are last by a tie", tied, len(labels), detail)


def print_audit(findings: list[Finding], *, console: Console | None = None) -> None:
    """Prints what was found as a table."""
    table = Table(title="Audit", show_lines=True)
    table.add_column("check", overflow="fold", ratio=3)
    table.add_column("verdict", no_wrap=True)
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("what is counted", overflow="fold", ratio=5)
    for finding in findings:
        verdict = Text(finding.verdict, style=_STYLES[finding.verdict])
        table.add_row(Text(finding.check), verdict, f"{finding.count:,} of {finding.of:,}", Text(finding.detail))
    console = console or Console()
    (console if console.is_terminal else Console(width=120)).print(table)

"""The auditor: looks for leaks in the built dataset and the actual batches of an experiment (`main --audit`).

It walks over events and windows in blocks. What it holds at once, besides the experiment and its batches, is at most

- 100 bytes an event or window of a block (`blocks.BLOCK`), or an event of the longest timeline where that is longer;
- 40 bytes a user; 16 an item, and 8 more for each order of ties;
- 2 bits an event of the whole table.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from user_llm.config import RECALL_DEPTH
from user_llm.data.mixture import Mixture, train_batches
from user_llm.data.pipeline import TrainSource
from user_llm.data.targets import SeveralTargets
from user_llm.data.windows import Windows
from user_llm.evaluation import leaks
from user_llm.evaluation.baselines import category_popularity_scores, popularity_scores
from user_llm.evaluation.blocks import label_blocks
from user_llm.evaluation.evaluator import Subset, rank_by_scores
from user_llm.evaluation.leaks import Finding, leak, noteworthy
from user_llm.evaluation.places import Places
from user_llm.evaluation.scores import Scores
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.stages import STAGES
from user_llm.experiment.vocabulary import vocabulary_events
from user_llm.experiment.workdir import CONFIG, fingerprint, read_config
from user_llm.inspect.prepared import prepared
from user_llm.inspect.ties import other_orders
from user_llm.tasks import Task

_TRAIN_BATCHES = 20  # that are looked at
_MAX_PROMPTS = 20_000  # a split: in training of the first batches, else evenly spread
_ROWS = 4096  # windows read at once
_REORDERINGS = 5  # of events of equal time
_TIE_USERS = 5_000  # evenly spread, whom these are measured on

Batch = Mapping[str, np.ndarray]

_STYLES = {leaks.PASS: "green", leaks.EXCEPTION: "yellow", leaks.FAIL: "bold red"}


def audit(experiment: Experiment, rankers: Mapping[str, Scores] | None = None) -> list[Finding]:
    """Checks an experiment for leaks, and for what a reader of its results should know.

    Args:
      rankers: more recommenders (name → scores `[B, I+1]`) whose Recall@10 is measured under other orders of equal
        times, besides the popularity rows.
    """
    splits = ("train", "validation", "test") if experiment.config.data.validation else ("train", "test")
    windows = {split: experiment.windows(split) for split in splits}
    held_out = Places(label_blocks(*_held_out(windows)), len(experiment.table.item))
    counts = leaks.recount(experiment.table.item, held_out, experiment.table.catalogue.num_items)
    return [
        *_timelines(experiment),
        *_contents(experiment, windows),
        *_splits(experiment, windows),
        *_duplicates(experiment, windows),
        *_statistics(experiment, windows, held_out, counts),
        *_other_runs(experiment, windows),
        *_ties(experiment, windows["test"], held_out, counts, rankers or {}),
    ]


def _held_out(windows: Mapping[str, Windows]) -> list[Windows]:
    return [of for split, of in windows.items() if split != "train"]


def audit_config(config: ConfigDict, workdir: str | None) -> str:
    """Prints what `audit` finds in the experiment of `config`, and returns the verdict of `leaks.as_results`.

    Args:
      workdir: of a run, whose vocabulary is then taken; None: one is made for the occasion.

    Raises:
      NoRun: the workdir holds none. Nothing is written there.
    """
    with prepared(config, workdir) as experiment:
        findings = audit(experiment)
    print_audit(findings)
    return leaks.as_results(findings)["verdict"]


def _timelines(experiment: Experiment) -> Iterator[Finding]:
    table = experiment.table
    yield leak(
        "events in time order",
        leaks.disorder(table.timestamp, table.offsets),
        len(table.item),
        "an event is earlier than the one before it: a history could hold what is later than its label",
    )
    repeated = leaks.repeated(table.user_ids)
    yield leak("one record a user", repeated, table.num_users, "the same user in several records, or shards")


class _Rows(NamedTuple):
    """Rows of a split as they are trained or evaluated on: their windows, and the task whose prompts they have."""

    split: str
    windows: Windows
    ids: np.ndarray
    batch: Batch
    task: Task | None


def _batches(experiment: Experiment, splits: tuple[str, ...]) -> Iterator[_Rows]:
    """Of the first batches that the stages train on, and of what is evaluated on."""
    config = experiment.config
    if "encoder" in config.stages:
        windows = experiment.windows("train", stride=config.encoder.stride)
        for ids, batch in _train_batches(experiment.encoder_source("train"), "encoder", config):
            yield _Rows("train", windows, ids, batch, None)
    # The stage `llm` reads the windows with prompts too, mixed with documents.
    asking = experiment.tasks if {"llm", "user_llm"} & set(config.stages) else ()
    if asking:
        source = STAGES["user_llm"].source(experiment, "train")
        windows = experiment.windows("train", stride=config.integration.targets)
        for ids, batch in _train_batches(source, "user_llm", config):
            if isinstance(source, SeveralTargets):
                batch = source.newest(batch)
            owners, own = source.owners(ids) if isinstance(source, Mixture) else (np.zeros(len(ids), int), ids)
            for index, task in enumerate(asking):
                here = owners == index
                yield _Rows("train", windows, own[here], {name: rows[here] for name, rows in batch.items()}, task)
    for split in splits[1:]:
        windows = experiment.windows(split)
        subsets: list[tuple[Subset, Task | None]] = [(Subset.evenly(windows, 0), None)]
        subsets += [(Subset.evenly(experiment.source(task.name, split), _MAX_PROMPTS), task) for task in asking]
        for subset, asked in subsets:
            for start in range(0, len(subset), _ROWS):
                ids = subset.ids[start : start + _ROWS]
                yield _Rows(split, windows, ids, subset.source.gather(ids), asked)


def _train_batches(source: TrainSource | Mixture, stage: str, config: ConfigDict) -> Iterator[tuple[np.ndarray, Batch]]:
    """Example numbers and rows of the first batches of a stage."""
    batch_size = config.training[stage].batch_size
    stream = train_batches(source, batch_size, config.seed, shards=config.data.shards)
    for step in range(min(_TRAIN_BATCHES, max(1, _MAX_PROMPTS // batch_size))):
        yield stream.ids(step), stream.batch(step)


class _Tally:
    """How many rows are True, of how many."""

    def __init__(self):
        self.count = self.of = 0

    def add(self, rows: np.ndarray) -> None:
        """Counts rows bool [B]."""
        self.count += int(rows.sum())
        self.of += len(rows)


def _contents(experiment: Experiment, windows: Mapping[str, Windows]) -> Iterator[Finding]:
    """Histories and prompts of actual batches against the events before the label, looked up again."""
    table = experiment.table
    wrong, again, changed, holding = _Tally(), _Tally(), _Tally(), _Tally()
    for split, read, ids, batch, task in _batches(experiment, tuple(windows)):
        # Of more rows than windows, the rest is found to be wrong.
        events = read.label_positions(ids % len(read))
        before, right = {}, np.ones(len(ids), bool)
        for column in ("item", "rating"):
            values = getattr(table, column)
            before[column] = leaks.expected_history(values, table.offsets, events, batch["history/item"].shape[1])
            right &= (batch[f"history/{column}"] == before[column]).all(axis=1)
            right &= batch[f"label/{column}"] == values[events]
        if "history/ago" in batch:
            ages = leaks.expected_ages(table.timestamp, table.offsets, events, batch["history/ago"].shape[1])
            right &= (batch["history/ago"] == ages).all(axis=1)
        wrong.add(~right)
        if split == "test" and task is None:  # every window once
            again.add((before["item"] == table.item[events, None]).any(axis=1))
        if task is not None:
            prompts = _prompts_of_others(experiment, task, before["item"], events)
            wider = batch["prompt_tokens"].shape[1] - prompts.shape[1]  # than the task's own, in a mixture
            prompts = np.pad(prompts, ((0, 0), (0, max(wider, 0))))
            for found, rows in zip((changed, holding), leaks.answers_in_prompts(batch, prompts), strict=True):
                found.add(rows)
    yield leak(
        "histories end before their label",
        *(wrong.count, wrong.of),
        "a history of an actual batch is not the events before its label, and nothing else",
    )
    yield noteworthy("test items in their own history", again.count, again.of, "the user comes back to an item")
    if changed.of:
        yield leak("the label in its prompt", changed.count, changed.of, "with another label the prompt is another one")
        yield noteworthy(
            "the answer's words in its prompt",
            *(holding.count, holding.of),
            "not because of the label: the history holds these words, or the event asked about does",
        )


def _prompts_of_others(experiment: Experiment, task: Task, history: np.ndarray, events: np.ndarray) -> np.ndarray:
    """Prompts int [B, P] of the same histories, and of other labels unless the task gives the label away."""
    table = experiment.table
    item, rating = table.item[events], table.rating[events].astype(np.int32)  # a byte of 255 has no next
    if not task.asks_about_label:
        item = item % table.catalogue.num_items + 1
        rating = (rating + 1) % len(table.rating_names)
    return experiment.prompts(task.name).build(history, item, rating)[0]


def _splits(experiment: Experiment, windows: Mapping[str, Windows]) -> Iterator[Finding]:
    offsets, held_out = experiment.table.offsets, _held_out(windows)
    yield leak(
        "held-out events in training",
        leaks.learnt_too_late(label_blocks(windows["train"]), label_blocks(*held_out), offsets),
        sum(map(len, held_out)),
        "a test or validation event is a label, or in a history, of a training window",
    )
    tested = leaks.repeated_users(label_blocks(windows["test"]), offsets)
    yield leak("one test event a user", tested, len(windows["test"]), "a user has several test events")


def _duplicates(experiment: Experiment, windows: Mapping[str, Windows]) -> Iterator[Finding]:
    table, length = experiment.table, experiment.config.data.history_length
    everything = sum(map(len, windows.values()))
    distinct = len(Places(label_blocks(*windows.values()), len(table.item)))
    yield leak("every window once", everything - distinct, everything, "the same window twice, or in two splits")
    hashes = leaks.WindowHashes(table.item, table.offsets, table.catalogue.num_items, length)
    test, train = (hashes.of(label_blocks(windows[split])) for split in ("test", "train"))
    yield noteworthy(
        "test windows like a training window",
        leaks.count_among(test, train),
        len(windows["test"]),
        "another user has the same items in the same order, label included, in training",
    )


def _statistics(
    experiment: Experiment, windows: Mapping[str, Windows], held_out: Places, counts: np.ndarray
) -> Iterator[Finding]:
    yield leak(
        "popularity without held-out events",
        int((experiment.item_counts != counts).sum()),
        len(counts),
        "items whose popularity counts differ from a count without test and validation events",
    )
    read = vocabulary_events(experiment)
    yield leak(
        "vocabulary without held-out reviews",
        int(held_out.holds(read).sum()),
        len(read),
        "test or validation reviews that the vocabulary was made of",
    )
    item, test = experiment.table.item, windows["test"]
    cold = sum(int(np.count_nonzero(counts[item[labels]] == 0)) for labels in label_blocks(test))
    yield noteworthy("test items never in training", cold, len(test), "nobody can have learnt these")


def _other_runs(experiment: Experiment, windows: Mapping[str, Windows]) -> Iterator[Finding]:
    """What another run has trained, that this one starts from."""
    config, held_out = experiment.config, _held_out(windows)
    events = sum(map(len, held_out))
    named = {"encoder": config.encoder.checkpoint, "llm": config.llm.checkpoint}
    runs = {
        "encoder": Path(named["encoder"]),
        "llm": Path(named["llm"]).parent.parent,  # <workdir>/llm/huggingface
    }
    for stage, workdir in runs.items():
        if not named[stage] or not (workdir / CONFIG).is_file() or not (workdir / stage).is_dir():
            continue  # nothing borrowed, or not from a run of ours
        theirs = read_config(workdir)
        check = f"held-out events in the training of the borrowed {stage}"
        if fingerprint(workdir) != experiment.table.fingerprint:
            detail = f"{workdir} has trained on other files ({theirs.data.dataset}), whose events cannot be compared"
            yield noteworthy(check, events, events, detail)
            continue
        learnt = Windows(
            experiment.table,
            history_length=theirs.data.history_length,
            split="train",
            min_history=theirs.data.min_history or None,
            validation=theirs.data.validation,
        )
        yield leak(
            check,
            leaks.learnt_too_late(label_blocks(learnt), label_blocks(*held_out), experiment.table.offsets),
            events,
            f"test or validation events that {workdir} has trained on",
        )


def _ties(
    experiment: Experiment, test: Windows, held_out: Places, counts: np.ndarray, rankers: Mapping[str, Scores]
) -> Iterator[Finding]:
    """How many labels are last only by the source's order, and what another order would do to Recall@10."""
    table, config = experiment.table, experiment.config.evaluation
    tied = leaks.tied_labels(table.timestamp, label_blocks(test))
    asked = test.label_positions(Subset.evenly(test, _TIE_USERS).ids)
    lengths = {"history": experiment.config.data.history_length}
    if config.exclude == "timeline":
        lengths["seen"] = test.longest
    orders = other_orders(table, held_out, counts, asked, lengths, range(_REORDERINGS)) if tied else []
    recalls: dict[str, list[float]] = {}
    for order in orders:
        rows = {
            "popularity": popularity_scores(order.counts),
            "popularity in the latest category": category_popularity_scores(
                order.counts, table.catalogue.item_categories
            ),
            **rankers,
        }
        options = dict(
            batch_size=config.batch_size,
            mesh=experiment.mesh,
            exclude_seen=config.exclude != "nothing",
            description="ties",
        )
        for name, scores in rows.items():
            ranks, _ = rank_by_scores(scores, order.windows, **options)
            recalls.setdefault(name, []).append(float((ranks <= RECALL_DEPTH).mean()))
    detail = "the label has the time of the event before it, so that the source's order makes it the last"
    if recalls:
        spread = "; ".join(f"{name} {min(values):.3f} to {max(values):.3f}" for name, values in recalls.items())
        detail += f"; Recall@{RECALL_DEPTH} over {_REORDERINGS} other orders of equal times: {spread}"
    yield noteworthy("test labels that are last by a tie", tied, len(test), detail)


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

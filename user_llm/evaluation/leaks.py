"""What a fair evaluation must not do, as questions about arrays: how many rows leak, and how many only seem to.

Every check looks at what was made (columns, windows, batches), not at the code that made it, and works its
expectation out on its own.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypedDict

import numpy as np

PASS, EXCEPTION, FAIL = "pass", "exception", "fail"


class Finding(NamedTuple):
    """What a check found.

    Attributes:
      check: its name.
      verdict: `pass`; `fail`, a leak; or `exception`, what is no fault of ours, but should be known to a reader.
      count, of: how many of how many.
      detail: in words.
    """

    check: str
    verdict: str
    count: int  # type: ignore[assignment]  # as results.json has it; nobody asks a finding for tuple's method
    of: int
    detail: str


class Results(TypedDict):
    """Findings as `results.json` has them: of `checks` by name `verdict`, `count`, `of` and `detail`."""

    verdict: str
    checks: dict[str, dict[str, str | int]]


def leak(check: str, count: int, of: int, detail: str) -> Finding:
    """A finding that fails when anything was counted."""
    return Finding(check, FAIL if count else PASS, int(count), int(of), detail)


def noteworthy(check: str, count: int, of: int, detail: str) -> Finding:
    """A finding that is an exception when anything was counted."""
    return Finding(check, EXCEPTION if count else PASS, int(count), int(of), detail)


def contains(rows: np.ndarray, lengths: np.ndarray, parts: np.ndarray, part_lengths: np.ndarray) -> np.ndarray:
    """Where a part of at least one token stands in its row, as one piece: bool [B].

    Args:
      rows: int [B, P]; lengths: int [B], tokens in each.
      parts: int [B, W]; part_lengths: int [B].
    """
    found = np.zeros(len(rows), bool)
    open_ended = np.arange(parts.shape[1]) >= part_lengths[:, None]
    padded = np.pad(rows, ((0, 0), (0, parts.shape[1])))
    for start in range(rows.shape[1]):
        same = (padded[:, start : start + parts.shape[1]] == parts) | open_ended
        found |= same.all(axis=1) & (start + part_lengths <= lengths)
    return found & (part_lengths > 0)


def answers_of(batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The tokens a batch teaches, without EOS: int [B, W] and their lengths [B]."""
    learnt = batch["decoder_loss_weights"] > 0
    lengths = np.maximum(learnt.sum(axis=1) - 1, 0)
    order = np.argsort(~learnt, axis=1, kind="stable")[:, : max(int(lengths.max(initial=0)), 1)]
    return np.take_along_axis(batch["decoder_target_tokens"], order, axis=1), lengths


def answers_in_prompts(batch: Mapping[str, np.ndarray], others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose prompt depends on their label, and those that hold their answer without: both bool [B].

    Args:
      batch: of `UserLLMSource.gather`.
      others: int [B, P], prompts of the same histories and other labels. What these hold, the history brings (a
        second visit, a title within another) or the event asked about.
    """
    prompts, lengths = batch["prompt_tokens"], batch["prompt_lengths"]
    same = (prompts == others).all(axis=1) if prompts.shape == others.shape else np.zeros(len(prompts), bool)
    return ~same, same & contains(prompts, lengths, *answers_of(batch))


def expected_history(column: np.ndarray, offsets: np.ndarray, labels: np.ndarray, length: int) -> np.ndarray:
    """The `length` events before each label [B], and none of another user: int [B, length], 0-padded on the left."""
    users = np.searchsorted(offsets, labels, side="right") - 1
    places = labels[:, None] - np.arange(length, 0, -1)
    own = places >= offsets[users, None]
    return np.where(own, column[np.maximum(places, 0)], 0)


def disorder(timestamps: np.ndarray, offsets: np.ndarray) -> int:
    """How many events are earlier than the one before them in their timeline."""
    earlier = np.diff(timestamps, prepend=timestamps[:1]) < 0
    earlier[_first_events(offsets)] = False
    return int(earlier.sum())


def _first_events(offsets: np.ndarray) -> np.ndarray:
    """Where the timelines begin, of users who have events. One without begins where the next does, or at the end."""
    return offsets[offsets < offsets[-1]]


def learnt_too_late(train: np.ndarray, held_out: np.ndarray, offsets: np.ndarray) -> int:
    """How many held-out labels lie at or before a training label of their user, so that training has seen them.

    Args:
      train, held_out: int, places of labels in the flat columns.
    """
    last = np.full(len(offsets) - 1, -1, np.int64)
    np.maximum.at(last, np.searchsorted(offsets, train, side="right") - 1, train)
    return int((held_out <= last[np.searchsorted(offsets, held_out, side="right") - 1]).sum())


def window_hashes(item: np.ndarray, offsets: np.ndarray, labels: np.ndarray, length: int) -> np.ndarray:
    """A hash of each window's items, label included: uint64 [n]. Equal windows have equal hashes, of whatever user.

    A polynomial modulo 2^64 over random numbers for the items, from prefix sums: as fast for windows of 200 as of 5.
    """
    generator = np.random.default_rng(0)
    numbers = generator.integers(2**64, size=int(item.max(initial=0)) + 1, dtype=np.uint64)
    base = generator.integers(2**63, size=1, dtype=np.uint64) * np.uint64(2) + np.uint64(1)  # odd: it has an inverse
    powers = np.cumprod(np.concatenate([np.ones(1, np.uint64), np.repeat(base, len(item))]), dtype=np.uint64)
    inverse = np.array([pow(int(base[0]), -1, 2**64)], np.uint64)
    inverses = np.cumprod(np.concatenate([np.ones(1, np.uint64), np.repeat(inverse, len(item))]), dtype=np.uint64)
    prefix = np.concatenate([np.zeros(1, np.uint64), np.cumsum(numbers[item] * powers[:-1], dtype=np.uint64)])
    first = np.maximum(labels - length, offsets[np.searchsorted(offsets, labels, side="right") - 1])
    return (prefix[labels + 1] - prefix[first]) * inverses[first]


def among(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which `values` [n] are in `others` [m]: bool [n]. `np.isin` takes ten times as long where m is millions."""
    if not len(others):
        return np.zeros(len(values), bool)
    others = np.sort(others)
    places = np.searchsorted(others, values)
    return (places < len(others)) & (others[np.minimum(places, len(others) - 1)] == values)


def tied_labels(timestamps: np.ndarray, labels: np.ndarray) -> int:
    """How many labels [n] have the time of the event before them, so that the source's order says which is last.

    No label is its user's first event: every window has a history.
    """
    return int((timestamps[labels] == timestamps[labels - 1]).sum())


def reordered(timestamps: np.ndarray, offsets: np.ndarray, seed: int) -> np.ndarray:
    """A permutation int [E] of the events that shuffles those of equal time within each timeline, and no other.

    The timelines are in time order."""
    first = np.diff(timestamps, prepend=timestamps[:1]) != 0  # of a run of equal times
    first[_first_events(offsets)] = True
    return np.argsort(np.cumsum(first) + np.random.default_rng(seed).random(len(timestamps)) / 2)


def recount(item: np.ndarray, held_out: np.ndarray, num_items: int) -> np.ndarray:
    """How often each item occurs outside of the events held out: int64 [I+1]."""
    counts = np.bincount(item, minlength=num_items + 1)
    counts -= np.bincount(item[np.unique(held_out)], minlength=num_items + 1)
    return counts


def as_results(findings: list[Finding]) -> Results:
    """Findings for `results.json`: `verdict` is `clean`, `exceptions` or `leaks`; `checks` by name."""
    verdicts = {finding.verdict for finding in findings}
    verdict = "leaks" if FAIL in verdicts else "exceptions" if EXCEPTION in verdicts else "clean"
    checks = {finding.check: finding._asdict() for finding in findings}
    for check in checks.values():
        del check["check"]
    return {"verdict": verdict, "checks": checks}

"""What a fair evaluation must not do, as questions about arrays: how many rows leak, and how many only seem to.

Every check looks at what was made (columns, windows, batches), not at the code that made it, and works its
expectation out on its own. Checks that walk over all events or windows hold a block of them (`blocks`), some numbers a
user and an item, and of all events no more than the bits of `Places`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from user_llm.evaluation import blocks
from user_llm.evaluation.places import Places

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


def expected_ages(timestamps: np.ndarray, offsets: np.ndarray, labels: np.ndarray, length: int) -> np.ndarray:
    """Seconds from the `length` events before each label [B] to it, as `Windows.gather` has them: int32 [B, length]."""
    there = expected_history(np.ones(len(timestamps), bool), offsets, labels, length).astype(bool)
    ages = timestamps[labels][:, None] - expected_history(timestamps, offsets, labels, length)
    return np.where(there, np.clip(ages, 0, np.iinfo(np.int32).max), 0).astype(np.int32)


def disorder(timestamps: np.ndarray, offsets: np.ndarray) -> int:
    """How many events are earlier than the one before them in their timeline."""
    found = 0
    for start, stop in blocks.spans(len(timestamps)):
        start = max(start, 1)  # the first event of all has none before it
        times = timestamps[start - 1 : stop]
        earlier = times[1:] < times[:-1]
        earlier[_first_events(offsets, start, stop)] = False
        found += int(np.count_nonzero(earlier))
    return found


def _first_events(offsets: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Where timelines begin among the events `start` to `stop`, counted from `start`.

    A user without events begins where the next one does; at the end, where no event is."""
    first, end = np.searchsorted(offsets, (start, stop))
    return offsets[first:end] - start


def _owners(offsets: np.ndarray, start: int) -> np.ndarray:
    """The user of each event of the block from `start` on: int64 [at most BLOCK]."""
    stop = min(start + blocks.BLOCK, int(offsets[-1]))
    first, end = np.searchsorted(offsets, start, side="right") - 1, np.searchsorted(offsets, stop)
    events = np.diff(np.clip(offsets[first : end + 1], start, stop))
    return np.repeat(np.arange(first, end), events)


def repeated(user_ids: Sequence[str]) -> int:
    """How many ids stand again behind their first place. Holds some 32 bytes an id, and those that seem to repeat."""
    hashes = np.fromiter(map(hash, user_ids), np.int64, len(user_ids))
    order = np.argsort(hashes)
    same = np.flatnonzero(np.diff(hashes[order]) == 0)
    suspects = order[np.union1d(same, same + 1)].tolist()  # hashes of other ids may be equal by chance
    return len(suspects) - len({user_ids[suspect] for suspect in suspects})


def repeated_users(labels: Iterable[np.ndarray], offsets: np.ndarray) -> int:
    """How many labels, int blocks [n] of places, are not the only one of their user, but for one of each."""
    met, count = np.zeros(len(offsets) - 1, bool), 0
    for start, places in blocks.by_span(labels):
        met[_owners(offsets, start)[places - start]] = True
        count += len(places)
    return count - int(np.count_nonzero(met))


def learnt_too_late(train: Iterable[np.ndarray], held_out: Iterable[np.ndarray], offsets: np.ndarray) -> int:
    """How many held-out labels lie at or before a training label of their user, so that training has seen them.

    Args:
      train, held_out: int blocks [n], places of labels in the flat columns.
    """
    last = np.full(len(offsets) - 1, -1, np.int64)
    for start, places in blocks.by_span(train):
        np.maximum.at(last, _owners(offsets, start)[places - start], places)
    return sum(
        int(np.count_nonzero(places <= last[_owners(offsets, start)[places - start]]))
        for start, places in blocks.by_span(held_out)
    )


class WindowHashes:
    """Hashes of windows' items, label included. Equal windows have equal hashes, of whatever user.

    A polynomial modulo 2^64 over random numbers for the items, from prefix sums: as fast for windows of 200 as of 5.
    The sums begin anew with every block of events, as a hash does not depend on where its window lies.

    Args:
      item: int [E]; offsets: int [users + 1].
      num_items: the highest item.
      length: events before the label.
    """

    def __init__(self, item: np.ndarray, offsets: np.ndarray, num_items: int, length: int):
        self._item, self._offsets, self._length = item, offsets, length
        generator = np.random.default_rng(0)
        self._numbers = generator.integers(2**64, size=num_items + 1, dtype=np.uint64)
        base = int(generator.integers(2**63, dtype=np.uint64)) * 2 + 1  # odd: it has an inverse
        reach = min(blocks.BLOCK, len(item)) + length
        self._powers, self._inverses = _powers(base, reach), _powers(pow(base, -1, 2**64), reach)

    def of(self, labels: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
        """The hashes of the windows with these labels, int blocks [n]: uint64 blocks [n], those of a block ascending by
        label."""
        for start, places in blocks.by_span(labels):
            begins = self._offsets[_owners(self._offsets, start)[places - start]]
            first = np.maximum(places - self._length, begins)
            low, end = int(first.min()), int(places[-1]) + 1
            first -= low
            prefix = np.zeros(end - low + 1, np.uint64)
            np.cumsum(self._numbers[self._item[low:end]] * self._powers[: end - low], out=prefix[1:])
            yield (prefix[places + (1 - low)] - prefix[first]) * self._inverses[first]


def _powers(base: int, count: int) -> np.ndarray:
    """`base` to the powers 0 to count-1, modulo 2^64: uint64 [count]."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, dtype=np.uint64)


def count_among(values: Iterable[np.ndarray], others: Iterable[np.ndarray]) -> int:
    """How many `values`, in blocks [n], are among `others`, in blocks [m]. Holds some 40 bytes a value."""
    distinct, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *values]), return_counts=True)
    if not len(distinct):
        return 0
    found = np.zeros(len(distinct), bool)
    for block in others:
        block = np.sort(block)  # so that neighbours are looked up in the same places of memory
        places = np.minimum(np.searchsorted(distinct, block), len(distinct) - 1)
        found[places[distinct[places] == block]] = True
    return int(counts[found].sum())


def tied_labels(timestamps: np.ndarray, labels: Iterable[np.ndarray]) -> int:
    """How many labels, int blocks [n], have the time of the event before them: the source's order says which is last.

    No label is its user's first event: every window has a history.
    """
    return sum(int(np.count_nonzero(timestamps[places] == timestamps[places - 1])) for places in labels)


def tied_runs(timestamps: np.ndarray, offsets: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The events that may change places with a wanted one, as their times are equal: places int [n], and their run.

    Args:
      timestamps: int [E], timelines in time order; offsets: int [users + 1].
      wanted: bool [E].
    """
    begins = np.ones(len(timestamps) + 1, bool)  # of a run of equal times; the last one ends with the table
    begins[1:-1] = timestamps[1:] != timestamps[:-1]
    begins[_first_events(offsets, 0, len(timestamps))] = True
    run = np.cumsum(begins[:-1])
    touched = np.zeros(len(timestamps) + 1, bool)
    touched[run[wanted & ~(begins[:-1] & begins[1:])]] = True  # who is alone changes with nobody
    places = np.flatnonzero(touched[run])
    return places, run[places]


def recount(item: np.ndarray, held_out: Places, num_items: int) -> np.ndarray:
    """How often each item occurs outside of the events held out: int64 [I+1]."""
    counts = np.zeros(num_items + 1, np.int64)
    for start, stop in blocks.spans(len(item)):
        np.add.at(counts, item[start:stop][~held_out.mask(start, stop)], 1)
    return counts


def as_results(findings: list[Finding]) -> Results:
    """Findings for `results.json`: `verdict` is `clean`, `exceptions` or `leaks`; `checks` by name."""
    verdicts = {finding.verdict for finding in findings}
    verdict = "leaks" if FAIL in verdicts else "exceptions" if EXCEPTION in verdicts else "clean"
    checks = {finding.check: finding._asdict() for finding in findings}
    for check in checks.values():
        del check["check"]
    return {"verdict": verdict, "checks": checks}

"""Counting and naming what is wrong with a source, and what its rules leave out: nothing is dropped in silence."""

from collections import Counter, defaultdict

from user_llm.errors import UserError

EXAMPLES_PER_REASON = 5

QUOTED_CHARACTERS = 200
"""How much of a malformed row the summary quotes."""


class MalformedSourceError(UserError):
    """The source cannot be used: a file is unusable, or has more malformed rows than `max_malformed` allows."""


class RowReport:
    """Rows read and rejected by file and reason, with the first few lines of each; and rows that fall under a rule.

    A rule is no fault: it says what a dataset means by a row (a second review of the same product, a product without
    a name). Its rows are counted, and not held against `max_malformed`.
    """

    def __init__(self):
        self.rows: dict[str, int] = {}
        self._rejected: dict[str, Counter] = defaultdict(Counter)
        self._examples: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
        self._rules: dict[str, dict[str, tuple[int, bool]]] = defaultdict(dict)

    def reject(self, file: str, reason: str, found: list[tuple[int, str]], count: int | None = None) -> None:
        """Counts malformed rows of one reason.

        Args:
          file: the file they are in.
          reason: what is wrong, in words that are the same for every such row.
          found: (line, what stands there) of the earliest such rows, in file order.
          count: how many there are, when `found` does not hold them all.
        """
        self._rejected[file][reason] += len(found) if count is None else count
        examples = [*self._examples[file, reason], *found[:EXAMPLES_PER_REASON]]
        self._examples[file, reason] = sorted(examples, key=lambda example: example[0])[:EXAMPLES_PER_REASON]

    def apply_rule(self, file: str, rule: str, count: int, *, dropped: bool) -> None:
        """Counts rows of `file` that fall under a rule, in words; `dropped` ones are no part of the dataset.

        A row may fall under several rules that drop nothing, but only under one that drops it.
        """
        # Also of no row: so the rules of parts of a file add up in the order in which the whole file has them.
        before, _ = self._rules[file].get(rule, (0, dropped))
        self._rules[file][rule] = before + count, dropped

    def add(self, other: "RowReport") -> None:
        """Counts what another report has counted of other rows."""
        for file, rows in other.rows.items():
            self.rows[file] = self.rows.get(file, 0) + rows
        for file, reasons in other._rejected.items():
            for reason, count in reasons.items():
                self.reject(file, reason, other._examples[file, reason], count)
        for file, rules in other._rules.items():
            for rule, (count, dropped) in rules.items():
                self.apply_rule(file, rule, count, dropped=dropped)

    def _reasons(self, file: str) -> list[tuple[str, int, list[str]]]:
        """(reason, count, examples) of the malformed rows of a file, in the order in which the reasons first occur."""
        reasons = sorted(self._rejected[file].items(), key=lambda reason: self._examples[file, reason[0]][0][0])
        return [
            (reason, count, [f"line {line}: {_printable(text)}" for line, text in self._examples[file, reason]])
            for reason, count in reasons
        ]

    def _applied(self, file: str) -> list[tuple[str, int, bool]]:
        """(rule, count, dropped) of the rules that rows of a file fall under."""
        return [(rule, count, dropped) for rule, (count, dropped) in self._rules[file].items() if count]

    def _kept(self, file: str) -> int:
        left_out = sum(count for count, dropped in self._rules[file].values() if dropped)
        return self.rows[file] - self.rejected(file) - left_out

    def rejected(self, file: str) -> int:
        """How many rows of `file` were rejected so far."""
        return self._rejected[file].total()

    def check(self, max_malformed: float) -> None:
        """Raises MalformedSourceError when any file's rejected fraction of rows exceeds `max_malformed`."""
        over = [file for file, rows in self.rows.items() if self.rejected(file) > max_malformed * rows]
        if over:
            raise MalformedSourceError(
                f"{' and '.join(over)}: more malformed rows than max_malformed={max_malformed:g} allows.\n"
                f"{self.text()}\n"
                "Repair the source, or raise max_malformed, the fraction of each file's rows that may be left "
                "out (0.001: one row in a thousand)."
            )

    def text(self) -> str:
        """The summary: what was read, kept and rejected of every file, and where."""
        lines = []
        for file, rows in self.rows.items():
            rejected = self.rejected(file)
            lines.append(f"{file}: {rows:,} rows read, {self._kept(file):,} kept, {rejected:,} rejected")
            for rule, count, dropped in self._applied(file):
                lines.append(f"  rule, {rule}: {count:,} {'left out' if dropped else 'kept'}")
            for reason, count, examples in self._reasons(file):
                lines.append(f"  {reason}: {count:,}")
                lines.extend(f"    {file} {example}" for example in examples)
                if count > len(examples):
                    lines.append(f"    … and {count - len(examples):,} more")
        return "\n".join(lines)

    def as_dict(self) -> dict:
        """The same as JSON: `{file: {"read", "kept", "rejected": {reason: {"rows", "first"}}, "rules": {…}}}`.

        A rule is `{rule: {"rows", "dropped"}}`.
        """
        return {
            file: {
                "read": rows,
                "kept": self._kept(file),
                "rejected": {
                    reason: {"rows": count, "first": examples} for reason, count, examples in self._reasons(file)
                },
                "rules": {rule: {"rows": count, "dropped": dropped} for rule, count, dropped in self._applied(file)},
            }
            for file, rows in self.rows.items()
        }


def _printable(text: str) -> str:
    """Text that a terminal shows and does not obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

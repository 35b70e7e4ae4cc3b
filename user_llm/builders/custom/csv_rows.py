"""Reads the records of a CSV file as text, in batches, past those that are broken."""

import csv
import io
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from user_llm.builders.malformed import QUOTED_CHARACTERS, MalformedSourceError, RowReport
from user_llm.builders.text_file import DAMAGE, WHOLE, Piece, damaged, open_text

_DELIMITERS = (",", "\t", ";", "|")
_BATCH_RECORDS = 1 << 16

logger = logging.getLogger(__name__)


class _Lines:
    """A file's lines, ends included; the lines of the record that is being read can be read again but for the first.

    Attributes:
      number: of lines that were read, or came before.
      ended: whether the last of them has a line end.
    """

    def __init__(self, file: Iterator[str], before: int = 0):
        self._file = file
        self._again: list[str] = []
        self._record: list[str] = []
        self.number = before
        self.ended = True

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._file)
        self.number += 1
        self._record.append(line)
        self.ended = line.endswith(("\n", "\r"))
        return line

    def start_record(self) -> int:
        """The next line is the first of a record; returns its number, from 1."""
        self._record.clear()
        return self.number + 1

    def give_up_record(self) -> str:
        """Goes back to the second line of the record; returns the first."""
        first, *others = self._record
        self._again.extend(reversed(others))
        self.number -= len(others)
        return first


class CsvRows:
    """A CSV file's records as Arrow batches: `line`, the record's first line from 1, and a column of text each role.

    Fields may be quoted, and then span lines. A quote that is left open costs its own line, not the rest of the
    file. Blank lines hold no record. The delimiter is the one of `, tab ; |` that finds the columns in the header.

    Attributes:
      schema: of the batches.
    """

    def __init__(self, name: str, path: Path, columns: Mapping[str, str], report: RowReport, piece: Piece = WHOLE):
        """Opens the file and reads its header.

        Args:
          name: of the file, in messages.
          path: the file; gzipped when its name ends in `.gz`.
          columns: role → name of a column.
          report: receives counts and faults.
          piece: what to read of the file, besides the header.

        Raises:
          MalformedSourceError: see `open_text`; or the file is empty, its header is not UTF-8, or lacks or repeats a
            column.
        """
        self._name = name
        self._report = report
        self._problem: Exception | None = None
        self.schema = pa.schema({"line": pa.int64()} | dict.fromkeys(columns, pa.string()))
        # `batches` closes it.
        self._text = _decoded(path, name, piece if not piece.begin else WHOLE)
        self._lines = _Lines(self._text)
        try:
            header = next(self._lines, "")
        except DAMAGE as error:
            raise damaged(name, 0, error) from error
        if not _is_utf8([header]) or "\0" in header:
            raise MalformedSourceError(f"{name} line 1 is not UTF-8: save the file as UTF-8 and build again.")
        self._delimiter, names = _split_header(header, columns.values())
        check_columns(f"{name} line 1", columns, names)
        self._num_fields = len(names)
        self._positions = [names.index(column) for column in columns.values()]
        if piece.begin:
            self._text.close()
            self._text = _decoded(path, name, piece)
            self._lines = _Lines(self._text, piece.line - 1)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Reads to the end, once, and closes the file; `finish` must be called after it."""
        with self._text:
            numbers: list[int] = []
            records: list[list[str]] = []
            for number, fields in self._records():
                numbers.append(number)
                records.append(fields)
                if len(records) == _BATCH_RECORDS:
                    yield self._batch(numbers, records)
                    numbers, records = [], []
            yield self._batch(numbers, records)

    def finish(self) -> None:
        """Raises what stopped the reading; an exception would not come through DuckDB's reading of `batches` whole.

        Raises:
          MalformedSourceError: the file cannot be read to its end.
        """
        if self._problem:
            raise damaged(self._name, self._lines.number, self._problem) from self._problem

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(self._lines, delimiter=self._delimiter, strict=True)
        count = 0
        last_is_good = False
        while True:
            line = self._lines.start_record()
            try:
                fields = next(reader)
            except StopIteration:
                break
            except csv.Error:
                count += 1
                first = self._lines.give_up_record()
                limit = f"{csv.field_size_limit():,}"
                self._reject(f"quotes do not pair up within {limit} characters", line, first.rstrip("\r\n"))
                continue
            except DAMAGE as error:
                self._problem = error
                break
            if not fields:
                continue
            count += 1
            last_is_good = len(fields) == self._num_fields
            if last_is_good:
                yield line, fields
            else:
                text = self._delimiter.join(fields)
                self._reject(f"not {self._num_fields} fields", line, text, f"{len(fields)} in ")
        self._report.rows[self._name] = count
        if last_is_good and not self._lines.ended:
            # Not every program writes one, so the row counts; but a number that is cut is another number.
            logger.warning("%s: the last row has no line end; it may be cut", self._name)
            self._report.apply_rule(self._name, "the last row has no line end: it may be cut", 1, dropped=False)

    def _reject(self, reason: str, line: int, text: str, before: str = "") -> None:
        self._report.reject(self._name, reason, [(line, f"{before}{text[:QUOTED_CHARACTERS]!r}")])

    def _batch(self, numbers: list[int], records: list[list[str]]) -> pa.RecordBatch:
        fields = list(zip(*records, strict=True)) or [()] * self._num_fields
        columns = [fields[position] for position in self._positions]
        try:
            return pa.record_batch([numbers, *columns], schema=self.schema)
        except UnicodeEncodeError:
            pass
        good = []
        for place, (number, *texts) in enumerate(zip(numbers, *columns, strict=True)):
            if _is_utf8(texts):
                good.append(place)
            else:
                self._reject("not utf-8", number, self._delimiter.join(records[place]))
        return self._batch([numbers[place] for place in good], [records[place] for place in good])


def _decoded(path: Path, name: str, piece: Piece) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_text(path, name, piece), "utf-8", errors="surrogateescape", newline="")


def _is_utf8(texts: list[str]) -> bool:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:  # the byte that could not be decoded, kept as half a surrogate pair
        return False
    return True


def _split_header(header: str, columns: Collection[str]) -> tuple[str, list[str]]:
    """The delimiter and the names of the columns: of the delimiters, the one that finds the most `columns`."""
    splits = {delimiter: _names(header, delimiter) for delimiter in _DELIMITERS}
    return max(splits.items(), key=lambda split: len({*split[1]} & {*columns}))


def _names(header: str, delimiter: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]


def check_columns(where: str, columns: Mapping[str, str], names: list[str]) -> None:
    """Checks that a file has each of `columns` once.

    Raises:
      MalformedSourceError: it does not; the message lists the columns that it has.
    """
    if not names:
        raise MalformedSourceError(f"{where}: there are no columns; expected {', '.join(columns.values())}.")
    wrong = [f"{role}={column}" for role, column in columns.items() if names.count(column) != 1]
    if wrong:
        raise MalformedSourceError(
            f"{where}: not exactly one column for {', '.join(wrong)}; the file's columns are {', '.join(names)}."
        )

"""Reads the rows of a Parquet file in batches, with their numbers, past those whose ids are none."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from user_llm.builders.custom.csv_rows import check_columns
from user_llm.builders.malformed import EXAMPLES_PER_REASON, MalformedSourceError, RowReport
from user_llm.builders.text_file import WHOLE, Piece

_IDS = ("user", "item")
_LARGEST_ID = 2.0**53
"""Above it, floating-point numbers are no longer all the whole ones."""


class ParquetRows:
    """A Parquet file's rows as Arrow batches: `line`, the row's number from 1, and a column a role.

    Ids that are floating-point numbers, as tables with gaps have them, come as whole ones.

    Attributes:
      schema: of the batches.
      lists: the roles whose column is of lists: `category`, or none.
    """

    def __init__(self, name: str, path: Path, columns: Mapping[str, str], report: RowReport, piece: Piece = WHOLE):
        """Opens the file and checks its columns.

        Args:
          name: of the file, in messages.
          path: the file.
          columns: role → name of a column.
          report: receives counts and faults.
          piece: what to read of the file.

        Raises:
          MalformedSourceError: it is no Parquet file, lacks a column, or has one of a type that its role cannot have.
        """
        self._name = name
        self._columns = columns
        self._report = report
        self._piece = piece
        self._problem: MalformedSourceError | None = None
        if not path.is_file():
            raise MalformedSourceError(f"{path} does not exist or is no file.")
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable() from error
        found = self._file.schema_arrow
        check_columns(name, columns, found.names)
        types = {role: found.field(column).type for role, column in columns.items()}
        for role, type_ in types.items():
            self._check_type(role, type_)
        self.lists = [role for role, type_ in types.items() if _is_list(type_)]
        self.schema = pa.schema({"line": pa.int64()} | {role: _type_of(role, type_) for role, type_ in types.items()})

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Reads to the end, once; `finish` says what stopped it."""
        first = before = self._piece.line - 1
        try:
            with self._file:
                end = self._file.num_row_groups if self._piece.end is None else self._piece.end
                groups = range(self._piece.begin, end)
                for batch in self._file.iter_batches(row_groups=groups, columns=list(self._columns.values())):
                    yield self._batch(batch, before)
                    before += len(batch)
        except MalformedSourceError as error:
            self._problem = error
            raise
        except (OSError, pa.ArrowException) as error:
            self._problem = self._unreadable()
            raise self._problem from error
        self._report.rows[self._name] = before - first

    def finish(self) -> None:
        """Raises what stopped the reading; an exception would not come through DuckDB's reading of `batches` whole.

        Raises:
          MalformedSourceError: the file cannot be read to its end.
        """
        if self._problem:
            raise self._problem

    def _unreadable(self) -> MalformedSourceError:
        return MalformedSourceError(f"{self._name} is truncated, damaged or no Parquet file: fetch or write it again.")

    def _check_type(self, role: str, type_: pa.DataType) -> None:
        inner = type_.value_type if _is_list(type_) and role == "category" else type_
        if pa.types.is_nested(inner) or pa.types.is_boolean(inner):
            expected = "text, numbers or lists of them" if role == "category" else "text or numbers"
            raise MalformedSourceError(
                f"{self._name}: column {self._columns[role]}, the {role}, is of {type_}; expected {expected}."
            )

    def _batch(self, batch: pa.RecordBatch, before: int) -> pa.RecordBatch:
        good = np.ones(len(batch), bool)
        columns = {"line": pa.array(np.arange(before + 1, before + 1 + len(batch)))}
        for role, column in self._columns.items():
            values = batch.column(column)
            if role in _IDS and pa.types.is_floating(values.type):
                numbers = values.cast(pa.float64()).fill_null(0).to_numpy()
                whole = (numbers == np.trunc(numbers)) & (np.abs(numbers) <= _LARGEST_ID)
                wrong = np.flatnonzero(good & ~whole)
                found = [(before + 1 + int(row), f"{column}={numbers[row]}") for row in wrong[:EXAMPLES_PER_REASON]]
                if found:
                    self._report.reject(self._name, f"{column} is not text or a whole number", found, len(wrong))
                good &= whole
                values = pc.if_else(whole, values, None)
            try:
                columns[role] = values.cast(self.schema.field(role).type)
            except pa.ArrowInvalid as error:
                raise MalformedSourceError(f"{self._name}: column {column} holds bytes that are no UTF-8.") from error
        return pa.record_batch(columns, schema=self.schema).filter(pa.array(good))


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def _type_of(role: str, type_: pa.DataType) -> pa.DataType:
    """What a column is read as."""
    if role in _IDS and pa.types.is_floating(type_):
        return pa.int64()
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return pa.string() if pa.types.is_binary(type_) or pa.types.is_large_binary(type_) else type_

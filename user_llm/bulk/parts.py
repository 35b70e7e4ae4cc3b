"""A Parquet file that is written in parts, so that a command which is stopped goes on where it was."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from user_llm.errors import UserError
from user_llm.files import read_json, replacing, write_json

PART = 4096  # users of a part, which a stop may cost

_ASKED = "asked.json"
_USERS = b"users"  # how many a part has, in its metadata


class Parts:
    """The parts of a file, in a folder beside it, which goes when the file is whole.

    Args:
      out: the file.
      asked: what two calls that make the same file have in common.

    Attributes:
      done: how many users the parts that are there have.

    Raises:
      UserError: there are parts of another call.
    """

    def __init__(self, out: Path, asked: dict[str, Any]):
        self._out, self._folder = out, out.with_name(out.name + ".parts")
        self._asked, facts = asked, self._folder / _ASKED
        self._old = out.with_name(out.name + ".old")
        shutil.rmtree(self._old, ignore_errors=True)  # of a call that was stopped while it tidied up
        if not facts.exists():
            shutil.rmtree(self._folder, ignore_errors=True)  # nobody knows of what they are
        elif read_json(facts, f"delete {self._folder}") != json.loads(json.dumps(asked)):
            raise UserError(
                f"{self._folder} holds parts of another call (other users, run or options): delete it, or take "
                "another --out"
            )
        parts = self._parts()
        self.done = sum(int(pq.read_metadata(part).metadata[_USERS]) for part in parts)
        self._next = len(parts)  # counted, not looked up again: the folder of a billion users has 250,000 parts

    def write(self, schema: pa.Schema, batches: Iterator[tuple[pa.Table, int]], count: int) -> None:
        """Writes what comes behind the parts, and then the file.

        Args:
          schema: of the tables.
          batches: tables of further users, and how many users each has.
          count: of all users.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._folder / _ASKED, self._asked)
        with tqdm(total=count, initial=self.done, unit="user", dynamic_ncols=True) as bar:
            waiting = [schema.empty_table()]
            users = 0
            for table, more in batches:
                waiting.append(table)
                users += more
                bar.update(more)
                if users >= PART:
                    self._add(waiting, users)
                    waiting, users = [schema.empty_table()], 0
            self._add(waiting, users)
        self._join(schema)

    def _add(self, tables: list[pa.Table], users: int) -> None:
        with replacing(self._folder / f"part-{self._next:06}.parquet") as partial:
            pq.write_table(pa.concat_tables(tables).replace_schema_metadata({_USERS: str(users)}), partial)
        self._next += 1

    def _join(self, schema: pa.Schema) -> None:
        """One file of all parts, in order; then the parts go."""
        with replacing(self._out) as partial, pq.ParquetWriter(partial, schema) as writer:
            for part in self._parts():
                writer.write_table(pq.read_table(part).replace_schema_metadata())
        self._folder.rename(self._old)  # at once: some of them would be taken for all
        shutil.rmtree(self._old)

    def _parts(self) -> list[Path]:
        """In order of their numbers, which may grow longer than the six digits they begin with."""
        return sorted(self._folder.glob("part-*.parquet"), key=lambda part: int(part.stem.removeprefix("part-")))

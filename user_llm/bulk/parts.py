"""A Parquet file that is written in parts, so that a command which is stopped goes on where it was."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from user_llm.errors import UserError
from user_llm.files import read_json, replacing, write_json

_ASKED = "asked.json"
_USERS = b"users"  # how many a part has, in its metadata


class Parts:
    """The parts of a file, in a folder beside it, which goes when the file is whole.

    Args:
      out: the file.
      asked: what two calls that make the same file have in common.

    Raises:
      UserError: there are parts of another call.
    """

    def __init__(self, out: Path, asked: dict[str, Any]):
        self._out, self._folder = out, out.with_name(out.name + ".parts")
        self._asked, facts = asked, self._folder / _ASKED
        if facts.exists() and read_json(facts, f"delete {self._folder}") != json.loads(json.dumps(asked)):
            raise UserError(
                f"{self._folder} holds parts of another call (other users, run or options): delete it, or take "
                "another --out"
            )

    def users(self) -> int:
        """How many users the parts that are there have."""
        return sum(int(pq.read_metadata(part).metadata[_USERS]) for part in self._done())

    def write(self, tables: Iterable[tuple[pa.Table, int]]) -> None:
        """Writes further parts: tables, and how many users each has."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._folder / _ASKED, self._asked)
        for number, (table, users) in enumerate(tables, start=len(self._done())):
            with replacing(self._folder / f"part-{number:06}.parquet") as partial:
                pq.write_table(table.replace_schema_metadata({_USERS: str(users)}), partial)

    def join(self, schema: pa.Schema) -> None:
        """One file of all parts, in order; then the parts go."""
        with replacing(self._out) as partial, pq.ParquetWriter(partial, schema) as writer:
            for part in self._done():
                writer.write_table(pq.read_table(part).replace_schema_metadata())
        shutil.rmtree(self._folder)

    def _done(self) -> list[Path]:
        return sorted(self._folder.glob("part-*.parquet"))

"""Records in a folder of this machine, by LMDB: many processes may read and write it at once."""

import contextlib
import fcntl
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb

from user_llm.errors import UserError
from user_llm.locks import Busy
from user_llm.store.engine import Pair, StoreError

_MAP = 1 << 40  # bytes of addresses, of which as many are used as there are records
_DATA, _COMPACTED = "data.mdb", "compacted"
_OPEN, _COMPACTING = "open.lock", "compacting.lock"
_KEYS = 10_000  # read at a time: a reader that stays keeps old pages


class LMDBEngine:
    """See `Engine`.

    Args:
      folder: made where it is not there.
      create: whether there may be no database in it yet.

    Raises:
      UserError: it is a file, holds something else or nothing, or cannot be written to.
    """

    longest_key = 511

    def __init__(self, folder: str | os.PathLike[str], *, create: bool = True):
        self.folder = Path(folder)
        if not create and not (self.folder / _DATA).exists():
            raise UserError(f"{folder} is no store: user-llm embed --store={folder} makes one")
        if self.folder.is_file():
            raise UserError(f"{folder} is a file: expected the folder of a store, or the name of a new one")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            others = {path.name for path in self.folder.iterdir()} - {_DATA, _OPEN, _COMPACTED, _COMPACTING, "lock.mdb"}
            if others:
                raise UserError(f"{folder} holds {sorted(others)[0]}, so it is no store: name another folder")
            self._lock = open(self.folder / _OPEN, "ab")  # noqa: SIM115, held while it is open
        except OSError as error:
            raise UserError(f"{folder} cannot be written to ({error.strerror}): name another folder") from error
        fcntl.flock(self._lock, fcntl.LOCK_SH)  # while somebody compacts, this waits
        self._threads = threading.RLock()  # none may hold the database while it is exchanged
        self._env = self._open()

    def _open(self) -> Any:
        try:
            return lmdb.open(str(self.folder), map_size=_MAP, max_readers=512)
        except lmdb.Error as error:
            raise UserError(f"{self.folder} cannot be opened as a store: {error}") from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Any]:
        try:
            with self._threads, self._env.begin(write=True) as transaction:
                yield transaction
        except (lmdb.MapFullError, lmdb.DiskError) as error:
            raise StoreError(f"{self.folder} is full, and nothing of this was written: {error}") from error

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `Engine`."""
        with self._threads, self._env.begin() as transaction:
            return [transaction.get(key) for key in keys]

    def put_many(self, records: Iterable[Pair]) -> None:
        """See `Engine`."""
        with self._writing() as transaction:
            for key, record in records:
                transaction.put(key, record)

    def replace(self, key: bytes, old: bytes | None, new: bytes) -> bool:
        """See `Engine`."""
        with self._writing() as transaction:
            same = transaction.get(key) == old
            if same:
                transaction.put(key, new)
            return same

    def delete_many(self, keys: Sequence[bytes]) -> int:
        """See `Engine`."""
        with self._writing() as transaction:
            return sum(transaction.delete(key) for key in keys)

    def names(self) -> Iterator[bytes]:
        """See `Engine`; in order."""
        last = b""
        while True:
            with self._threads, self._env.begin() as transaction, transaction.cursor() as cursor:
                if not (cursor.set_range(last) if last else cursor.first()):
                    return
                if cursor.key() == last and not cursor.next():
                    return
                some = []
                for key in cursor.iternext(keys=True, values=False):
                    some.append(key)
                    if len(some) == _KEYS:
                        break
            yield from some
            last = some[-1]

    def count(self) -> int:
        """See `Engine`."""
        with self._threads:
            return int(self._env.stat()["entries"])

    def compact(self) -> None:
        """See `Engine`.

        Raises:
          Busy: another process has it open.
        """
        # A lock that is changed from shared to exclusive, and back, is lost in between, and when that fails: meanwhile
        # the other one keeps everybody else from compacting.
        with self._threads, open(self.folder / _COMPACTING, "ab") as compacting:
            try:
                fcntl.flock(compacting, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._write_anew()
            except BlockingIOError:
                raise Busy(f"{self.folder} is open elsewhere: compact it when nobody else uses it") from None
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_SH)

    def _write_anew(self) -> None:
        """Exchanges the database for a copy without what was deleted; a kill at any moment leaves one of both."""
        copy = self.folder / _COMPACTED
        shutil.rmtree(copy, ignore_errors=True)  # of one that was stopped
        copy.mkdir()
        self._env.copy(str(copy), compact=True)
        _sync(copy / _DATA)
        self._env.close()
        try:
            os.replace(copy / _DATA, self.folder / _DATA)
            _sync(self.folder)
        finally:
            self._env = self._open()
        shutil.rmtree(copy)

    def close(self) -> None:
        """See `Engine`."""
        with self._threads:
            self._env.close()
            self._lock.close()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""A run's users in a database: written once, brought up to date with every event, read in batches."""

import functools
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from user_llm.answerable import Changes
from user_llm.asking import BATCHES
from user_llm.embeddings import UserEmbeddings
from user_llm.errors import UserError
from user_llm.events import Event
from user_llm.files import replacing
from user_llm.given import skips
from user_llm.store.engine import Engine
from user_llm.store.item_changes import changes_of, record_of
from user_llm.store.lmdb_engine import LMDBEngine
from user_llm.store.records import DTYPES, Layout, made_by
from user_llm.store.redis_engine import RedisEngine

if TYPE_CHECKING:
    from user_llm.api import UserModel

# What the records hold, and which items may be answered: keys that no user has.
_RESERVED = _ABOUT, _ITEMS = b"\0about", b"\0items"
_SOME = 4096  # users of an export's row group


class UserStore:
    """Users of a finished run that are kept: their latest events, and what its encoder has made of them.

    What a method has written when it returns is on disk (of a server: as soon as its settings say). Threads may share a
    store, and so may processes. Users are named by texts.

    Args:
      model: of the run.
      where: a folder of this machine, or a server that machines share, as "redis://host:6379/0".
      dtype: of the vectors that are kept, float32 or bfloat16; None: as they are, of a new store float32.
      create: whether there may be no store yet.

    Attributes:
      model: as given.
      layout: of the records.

    Raises:
      UserError: the database cannot be had, or its records are laid out for a run of another shape; a run with
        `encoder.time=asked`, whose embeddings change with the clock.
    """

    def __init__(
        self, model: "UserModel", where: str | os.PathLike[str], *, dtype: str | None = None, create: bool = True
    ):
        if dtype is not None and dtype not in DTYPES:
            raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
        where = os.fspath(where)
        _check_lasting(model)
        engine: Engine = RedisEngine(where) if "://" in where else LMDBEngine(where, create=create)
        try:
            self._serve(model, engine, where, dtype, create)
        except BaseException:
            engine.close()
            raise

    def with_model(self, model: "UserModel") -> "UserStore":
        """The same store for another model, as the one that takes this one's place in a process that serves.

        A folder can be opened only once in a process: both use one database, and closing one closes both.

        Raises:
          UserError: the records are laid out for a run of another shape, or it can have no store.
        """
        _check_lasting(model)
        other = UserStore.__new__(UserStore)
        other._serve(model, self._engine, self._where, None, create=True)
        return other

    def _serve(self, model: "UserModel", engine: Engine, where: str, dtype: str | None, create: bool) -> None:
        self.model, self._engine, self._where = model, engine, where
        self.layout = self._agreed(where, dtype, create)

    def _agreed(self, where: str, dtype: str | None, create: bool) -> Layout:
        """The layout of the store's records, which a new store takes from the run."""
        (about,) = self._engine.get_many([_ABOUT])
        if about is None and not create:
            raise UserError(f"{where} is no store: user-llm embed --store={where} makes one")
        if dtype is None:
            dtype = "float32" if about is None else json.loads(about)["dtype"]
        layout, events = _layout_of(self.model, dtype), self.model.events
        # Ratings are kept as classes, of which another run may have others.
        ratings = list(events.ratings) if events.reads_ratings else []
        wanted = json.dumps({**vars(layout), "ratings": ratings}, sort_keys=True).encode()
        if not self._engine.replace(_ABOUT, None, wanted):
            (found,) = self._engine.get_many([_ABOUT])
            if found != wanted:
                raise UserError(
                    f"{where} holds records of another shape ({_text(found)}; this run's are {_text(wanted)}): name "
                    "another store, and fill it from the events."
                )
        return layout

    def put(self, users: Mapping[str, Sequence[Event]], *, unknown: str = "error") -> None:
        """Writes users anew, each with its events as `UserModel.recommend` takes them.

        Raises:
          UserError: events that are none, as `recommend` says; the batches of users before them were written.
        """
        skip = skips(unknown)
        for some in _batches(list(users.items())):
            names, events = [name for name, _ in some], [events for _, events in some]
            self._keys(names)  # which refuses what is no name
            where = [f"user {name}, " for name in names]
            self.put_arrays(names, self.model.events.read(events, [None] * len(some), where, skip=skip))

    def put_arrays(self, users: Sequence[str], read: Mapping[str, np.ndarray]) -> None:
        """As `put`, of users who are arrays already (`EventReader.read`), in any number."""
        records: list[tuple[bytes, bytes]] = []
        keys = self._keys(users)
        for some in _batches(range(len(keys))):
            part = slice(some[0], some[-1] + 1)
            records += zip(keys[part], self._records({name: x[part] for name, x in read.items()}), strict=True)
            if len(records) * self.layout.columns.itemsize > _AT_ONCE:
                self._engine.put_many(records)
                records = []
        self._engine.put_many(records)

    def append(self, user: str, *events: Event, stale: str = "error") -> None:
        """Adds events to a user, who may be new: as if the whole timeline were encoded anew.

        Whoever appends to the same user at the same time loses nothing.

        Args:
          stale: what of a record of another encoder: an "error", or "encode": its events are kept, and the user becomes
            one of this store's model.
        """
        self.append_many({user: events}, stale=stale)

    def append_many(
        self,
        events: Mapping[str, Sequence[Event]],
        *,
        stale: str = "error",
        refused: dict[str, UserError] | None = None,
    ) -> None:
        """`append` of many users at once.

        Args:
          events, stale: as for `append`.
          refused: is told who cannot be brought up to date, and why; of them nothing is written, and of all others what
            was given. None: that is an error.

        Raises:
          UserError: an event that is none, and nothing was written; one before a user's latest, a record of another
            encoder (`refresh`), a database that fails: the batches of users before it were written.
        """
        _check_stale(stale)
        self._keys(list(events))  # which refuses what is no name
        values = {name: self._values(f"user {name}, event", own) for name, own in events.items()}
        for some in _batches(values.items()):
            waiting = {name: own for name, own in some if len(own["item"])}
            while waiting:
                keys = self._keys(list(waiting))
                old = self._engine.get_many(keys)
                try:
                    read = self._longer(waiting, old, stale)
                except UserError:
                    if refused is None:
                        raise
                    refused |= self._wrong(waiting, old, stale)
                    waiting = {name: own for name, own in waiting.items() if name not in refused}
                    continue
                new = self._records(read)
                done = [
                    name
                    for name, key, before, after in zip(list(waiting), keys, old, new, strict=True)
                    if self._engine.replace(key, before, after)
                ]
                waiting = {name: own for name, own in waiting.items() if name not in set(done)}

    def get_many(self, users: Sequence[str], *, missing: str = "error", stale: str = "error") -> UserEmbeddings:
        """What is kept of users, to be asked about (`UserModel.recommend`), in this order.

        Args:
          missing: what of users who are not there: an "error", or "empty": users without events, who get no answers.
          stale: what of users whom another encoder has made: an "error", or "encode": their events are encoded for this
            call, and the records stay as they are. So two who serve different models of one store do not fight.

        Raises:
          UserError: users are not there; they were written with another encoder (`refresh`), or other items.
        """
        if missing not in ("error", "empty"):
            raise UserError(f"missing must be 'error' or 'empty', got {missing!r}.")
        _check_stale(stale)
        records = self._engine.get_many(self._keys(users))
        absent = [user for user, record in zip(users, records, strict=True) if record is None]
        if absent and missing == "error":
            raise UserError(f"the store has no user {absent[0]!r} ({len(absent)} of {len(users)} are not there)")
        nobody = self._nobody if absent else b""
        rows = self.layout.read([nobody if record is None else record for record in records])
        others = self._check(rows, users, stale)
        if len(others):
            rows = rows.copy()
            for some in _batches(others):
                rows[some] = self.layout.read(self._records(self._events_of(rows[some])))
        return self.layout.users(rows, *self.model.fingerprints)

    def delete(self, users: Sequence[str]) -> int:
        """Forgets users; how many were there. `compact` leaves nothing of them in the database's files."""
        return self._engine.delete_many(self._keys(users))

    def refresh(self) -> int:
        """Encodes the kept events of all users anew whom another encoder has made; how many they were.

        Raises:
          UserError: they are events of other items.
        """
        count = 0
        for users in _batches(self.users()):
            waiting = self._keys(users)
            while waiting:  # whoever has been written in between is looked at again
                found = [(key, old) for key, old in zip(waiting, self._engine.get_many(waiting), strict=True) if old]
                rows = self.layout.read([old for _, old in found])
                current, known = made_by(rows, *self.model.fingerprints)
                if not known.all():
                    raise UserError(_OTHER_ITEMS)
                stale = np.flatnonzero(~current)
                anew = self._records(self._events_of(rows[stale])) if len(stale) else []
                waiting = []
                for (key, old), new in zip([found[index] for index in stale], anew, strict=True):
                    done = self._engine.replace(key, old, new)
                    count += done
                    waiting += [] if done else [key]
        return count

    def users(self) -> Iterator[str]:
        """Whom there is."""
        return (key.decode() for key in self._engine.names() if key not in _RESERVED)

    def __contains__(self, user: str) -> bool:
        """Whether a user is there, with or without events."""
        (record,) = self._engine.get_many(self._keys([user]))
        return record is not None

    def __len__(self) -> int:
        return self._engine.count() - sum(record is not None for record in self._engine.get_many(_RESERVED))

    def items(self) -> Changes:
        """What may be answered by all who share the store, as they have changed it (`AnswerableItems.follow`).

        Raises:
          UserError: it was changed for another catalogue.
        """
        (record,) = self._engine.get_many([_ITEMS])
        return changes_of(record, self.model.fingerprints[1])

    def replace_items(self, before: Changes, after: Changes) -> bool:
        """Writes `after` if `items` still is `before`; whether it was.

        Raises:
          UserError: as `items`.
        """
        catalogue = self.model.fingerprints[1]
        (record,) = self._engine.get_many([_ITEMS])
        same = changes_of(record, catalogue) == before
        return same and self._engine.replace(_ITEMS, record, record_of(after, catalogue))

    def export(self, file: str | os.PathLike[str]) -> int:
        """Writes a Parquet file: `user`, `items` (the run's ids of the latest events), `embeddings` (its vectors).

        Returns: how many users.
        """
        raw_ids, count = np.array(self.model.catalogue.raw_ids, object), 0
        schema = pa.schema(
            {"user": pa.string(), "items": pa.list_(pa.string()), "embeddings": pa.list_(pa.list_(pa.float32()))}
        )
        with replacing(file) as partial, pq.ParquetWriter(partial, schema) as writer:
            for some in _batches(self.users(), _SOME):
                there = self._engine.get_many(self._keys(some))  # somebody may have deleted one meanwhile
                names = [name for name, record in zip(some, there, strict=True) if record is not None]
                kept = self.get_many(names, missing="empty")
                rows = {
                    "user": names,
                    "items": [raw_ids[items[items > 0]].tolist() for items in kept.items],
                    "embeddings": [list(own[mask]) for own, mask in zip(kept.embeddings, kept.mask, strict=True)],
                }
                writer.write_table(pa.table(rows, schema))
                count += len(names)
        return count

    def compact(self) -> None:
        """Gives back the room of what was deleted, of which nothing is left in the store's files then.

        A server writes those files anew that its settings have it keep, and this waits for it.

        Raises:
          Busy: another process has the folder open.
        """
        self._engine.compact()

    def close(self) -> None:
        """Ends the use of the database."""
        self._engine.close()

    def __enter__(self) -> "UserStore":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _keys(self, users: Sequence[str]) -> list[bytes]:
        keys = []
        for user in users:
            if not isinstance(user, str) or not user or "\0" in user:
                raise UserError(f"a user is named by a text, got {user!r}.")
            try:
                keys.append(user.encode())
            except UnicodeEncodeError:
                raise UserError(f"user {user!r} holds half a character: name users by whole texts.") from None
            if len(keys[-1]) > self._engine.longest_key:
                raise UserError(f"user {user[:40]}…: a name may have {self._engine.longest_key} bytes.")
        return keys

    def _records(self, read: Mapping[str, np.ndarray]) -> list[bytes]:
        return self.layout.write(read, self.model.encode_arrays(read, query=self.layout.query > 0))

    def _check(self, rows: np.ndarray, users: Sequence[str], stale: str) -> np.ndarray:
        """Which of the rows another encoder has made, where they are no error (`stale`)."""
        current, known = made_by(rows, *self.model.fingerprints)
        for index in np.flatnonzero(~known)[:1]:
            raise UserError(f"user {users[index]!r}: {_OTHER_ITEMS}")
        others = np.flatnonzero(~current)
        if len(others) and stale == "error":
            raise UserError(
                f"user {users[others[0]]!r} was written with another encoder ({len(others)} of {len(users)} were): "
                "refresh() encodes their events anew, and stale='encode' does for this call."
            )
        return others

    @functools.cached_property
    def _nobody(self) -> bytes:
        """The record of a user without events."""
        slots = np.zeros((1, self.layout.events), np.int32)
        read: dict[str, np.ndarray] = {f"history/{name}": slots for name in ("item", "rating", "ago")}
        read = {**read, "history/newest": np.zeros(1, np.int64)}
        layout, (encoder, catalogue) = self.layout, self.model.fingerprints
        vectors, query = np.zeros((1, layout.slots, layout.width), np.float32), np.zeros((1, layout.query), np.float32)
        users = UserEmbeddings(slots, vectors, np.zeros(vectors.shape[:2], bool), query, encoder, catalogue)
        return layout.write(read, users)[0]

    def _events_of(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The events in records, as `EventReader.read` gives them."""
        read = {"history/item": rows["item"].copy(), "history/rating": rows["rating"].astype(np.int32)}
        if self.layout.times:
            read |= {"history/ago": rows["ago"].copy(), "history/newest": rows["newest"].copy()}
        return read

    def _values(self, where: str, events: Sequence[Event]) -> dict[str, np.ndarray]:
        """What is kept of a user's further events, int `[E]` each."""
        reader, moments = self.model.events, list[float]()
        pairs = [(f"{where} {index}", event) for index, event in enumerate(events)]
        values = {
            "item": np.array([reader.item(*pair) for pair in pairs]),
            "rating": np.array([reader.rating(*pair) for pair in pairs]),
        }
        if self.layout.times:
            for name, event in pairs:
                moments.append(reader.moment(f"{name}: its time", event.get("time"), *moments[-1:]))
            values["time"] = np.array(moments).astype(np.int64)
        return values

    def _wrong(
        self, events: Mapping[str, Mapping[str, np.ndarray]], records: Sequence[bytes | None], stale: str
    ) -> dict[str, UserError]:
        """Why further events cannot stand behind those of records, where they cannot."""
        wrong = {}
        for (user, own), record in zip(events.items(), records, strict=True):
            try:
                self._longer({user: own}, [record], stale)
            except UserError as error:
                wrong[user] = error
        return wrong

    def _longer(
        self, events: Mapping[str, Mapping[str, np.ndarray]], records: Sequence[bytes | None], stale: str
    ) -> dict[str, np.ndarray]:
        """The events of records with further ones (`_values`) behind them."""
        rows = self.layout.read([self._nobody if record is None else record for record in records])
        self._check(rows, list(events), stale)
        read = self._events_of(rows)
        for row, (user, own) in enumerate(events.items()):
            columns = {"item": own["item"], "rating": own["rating"]}
            if self.layout.times:
                times, newest, known = own["time"], read["history/newest"], read["history/item"][row] > 0
                if known.any():
                    name = f"user {user}, event 0: its time"
                    self.model.events.moment(name, int(times[0]), int(newest[row]))
                    passed = read["history/ago"][row] + (times[-1] - newest[row])
                    read["history/ago"][row] = np.where(known, np.minimum(passed, _LONGEST), 0)
                columns["ago"] = np.minimum(times[-1] - times, _LONGEST)
                newest[row] = times[-1]
            for column, values in columns.items():
                kept = read[f"history/{column}"][row]
                kept[:] = np.concatenate([kept, values])[-len(kept) :]
        return read


_OTHER_ITEMS = "the store's events are of another catalogue: fill a new one from the events."
_LONGEST = np.iinfo(np.int32).max
_AT_ONCE = 1 << 25  # bytes of records that are written at once


def _check_lasting(model: "UserModel") -> None:
    if model.events.reads_times == "asked":
        raise UserError("config.encoder.time='asked' makes embeddings of one moment: there is nothing to keep.")


def _layout_of(model: "UserModel", dtype: str) -> Layout:
    config, length = model.config, model.config.data.history_length
    query = config.evaluation.answers == "fused"
    nobody = {name: np.zeros((1, length), np.int32) for name in ("history/item", "history/rating", "history/ago")}
    if not model.events.reads_times:
        del nobody["history/ago"]
    made = model.encode_arrays(nobody, query=query)
    slots, width = made.embeddings.shape[1:]
    return Layout(
        length,
        slots,
        width,
        query=0 if made.query is None else made.query.shape[1],
        times=bool(model.events.reads_times),
        dtype=dtype,
    )


def _check_stale(stale: str) -> None:
    if stale not in ("error", "encode"):
        raise UserError(f"stale must be 'error' or 'encode', got {stale!r}.")


def _text(about: bytes | None) -> str:
    return "" if about is None else about.decode("utf-8", "replace")


def _batches(values: Any, size: int = BATCHES[-1]) -> Iterator[list[Any]]:
    rest = iter(values)
    while some := list(itertools.islice(rest, size)):
        yield some

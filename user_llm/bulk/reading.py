"""The users that a command is given: files of events, in batches of arrays for a run."""

import argparse
import contextlib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from user_llm.api import UserModel
from user_llm.builders.custom.command import pairs
from user_llm.builders.custom.config import CustomConfig
from user_llm.bulk.users import UserEvents, UsersFile
from user_llm.errors import UserError

OF_FILES = ("columns", "by", "unknown", "max_malformed")  # options of files

_logger = logging.getLogger("user_llm")


def add_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The flags that name a run, files of events, and what of them may be left out."""
    parser.add_argument("--workdir", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--users", nargs="+", required=required, help="CSV, JSON lines or Parquet; one row an event")
    parser.add_argument(
        "--columns",
        nargs="+",
        default=["user=user", "item=item", "timestamp=timestamp"],
        metavar="role=column",
        help="which column is which: user, item, timestamp; rating, where the encoder reads it",
    )
    parser.add_argument("--by", choices=("id", "title"), default="id", help="what the column item holds (id)")
    parser.add_argument(
        "--unknown", choices=("error", "skip"), default="error", help="events of unknown items or ratings"
    )
    parser.add_argument("--max_malformed", type=_share, default=0.0, help="share of the rows that may be malformed (0)")


def _share(text: str) -> float:
    if not 0 <= (share := float(text)) <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return share


def refuse_ignored(
    parser: argparse.ArgumentParser, options: argparse.Namespace, beside: str, names: Sequence[str]
) -> None:
    """Ends the command where options are given that mean nothing beside another."""
    for name in names:
        if getattr(options, name) != parser.get_default(name):
            parser.error(f"--{name} means nothing beside {beside}: leave it out")


def run_of(options: argparse.Namespace) -> str:
    """A fingerprint of all that the run's folder holds."""
    return hashlib.sha256((options.workdir / "checksums.json").read_bytes()).hexdigest()


def asked_of(options: argparse.Namespace) -> dict[str, Any]:
    """What two calls that read the same users have in common."""
    files = {
        name: [path.stat().st_size, path.stat().st_mtime_ns] if path.exists() else None
        for name, path in _config(options).named_files().items()
    }
    kept = {name: getattr(options, name) for name in ("by", "unknown", "max_malformed")}
    return {"files": files, "columns": dict(_config(options).columns), **kept}


def _config(options: argparse.Namespace) -> CustomConfig:
    return CustomConfig(name="users", files=tuple(options.users), columns=pairs("--columns", options.columns))


@contextlib.contextmanager
def opened(model: UserModel, options: argparse.Namespace) -> Iterator[UsersFile]:
    """The users of the files.

    Raises:
      UserError: rows that cannot be used, more than the options allow.
    """
    names = model.catalogue.titles if options.by == "title" else model.catalogue.raw_ids
    users = UsersFile(
        _config(options),
        names,
        list(model.events.ratings),
        length=model.config.data.history_length,
        reads_ratings=model.events.reads_ratings,
    )
    with contextlib.closing(users):
        _logger.info("%s", users.report.text())
        if users.unknown and options.unknown == "error":
            raise UserError(
                f"{users.unknown:,} events are of items or ratings that the run does not know (see above): leave them "
                "out with --unknown=skip, or name the right column with --by"
            )
        malformed = sum(map(users.report.rejected, users.report.rows)) - users.unknown
        if malformed > options.max_malformed * sum(users.report.rows.values()):
            raise UserError(
                f"{malformed:,} rows are malformed (see above), more than --max_malformed={options.max_malformed:g}"
            )
        yield users


def read_of(model: UserModel, users: UserEvents, now: float | None = None) -> dict[str, np.ndarray]:
    """The events as `UserModel.encode_arrays` takes them.

    Args:
      now: when all are asked, in seconds since 1970, where the run reads that.

    Raises:
      UserError: somebody has an event behind `now`.
    """
    read = {"history/item": users.item, "history/rating": users.rating}
    if not model.events.reads_times:
        return read
    newest = users.seconds[:, -1:]
    read["history/newest"] = newest[:, 0]
    if now is not None:
        for row in np.flatnonzero(newest[:, 0] > now)[:1]:
            raise UserError(
                f"user {users.users[row]}: the newest event is of {newest[row, 0]}, behind --now={now:g}: take a "
                "later --now"
            )
        newest = np.full((1, 1), int(now))
    ago = np.where(users.item > 0, newest - users.seconds, 0)
    return {**read, "history/ago": np.clip(ago, 0, np.iinfo(np.int32).max).astype(np.int32)}

"""Recommendations for all users of some files:

    user-llm recommend --workdir=RUN --users events.csv --columns user=userId item=movieId timestamp=timestamp \\
        rating=rating --out=recommendations.parquet [--k=10] [--answers=fused] [--unknown=skip]

Each line of the result is an answer: user, rank from 1, item (the run's id of it), title, score. A run that is stopped
goes on with the same command.
"""

import argparse
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from user_llm.api import UserModel, load
from user_llm.arguments import whole
from user_llm.asking import BATCHES
from user_llm.builders.custom.command import pairs
from user_llm.builders.custom.config import CustomConfig
from user_llm.bulk.users import UserEvents, UsersFile
from user_llm.errors import UserError, show
from user_llm.files import read_json, replacing, write_json
from user_llm.tasks.next_item import ANSWERS

PART = 4096  # users of a part, which a stop may cost
_USERS = b"users"  # how many a part has, in its metadata
_ASKED = "asked.json"
SCHEMA = pa.schema(
    {"user": pa.string(), "rank": pa.int32(), "item": pa.string(), "title": pa.string(), "score": pa.float32()}
)

_logger = logging.getLogger("user_llm")


def recommend(options: argparse.Namespace) -> None:
    """Writes `options.out`.

    Raises:
      UserError: rows that cannot be used, more than the options allow; parts of another call.
    """
    config = CustomConfig(name="users", files=tuple(options.users), columns=pairs("--columns", options.columns))
    whole("--k", options.k, 1)
    model = load(options.workdir)
    model.events.check_now(options.now, "--now")
    parts = options.out.with_name(options.out.name + ".parts")
    asked = _asked(options, config)
    _refuse_others(parts, asked)
    names = model.catalogue.titles if options.by == "title" else model.catalogue.raw_ids
    users = UsersFile(
        config,
        names,
        list(model.events.ratings),
        length=model.config.data.history_length,
        reads_ratings=model.events.reads_ratings,
    )
    try:
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
        parts.mkdir(parents=True, exist_ok=True)
        write_json(parts / _ASKED, asked)
        _make_parts(model, users, parts, options)
    finally:
        users.close()
    _join(parts, options.out)


def _asked(options: argparse.Namespace, config: CustomConfig) -> dict[str, Any]:
    """What two calls that make the same file have in common."""
    files = {
        name: [path.stat().st_size, path.stat().st_mtime_ns] if path.exists() else None
        for name, path in config.named_files().items()
    }
    kept = {name: getattr(options, name) for name in ("k", "answers", "by", "unknown", "max_malformed", "now")}
    run = hashlib.sha256((options.workdir / "checksums.json").read_bytes()).hexdigest()
    return {"files": files, "columns": dict(config.columns), "run": run, **kept}


def _refuse_others(parts: Path, asked: dict[str, Any]) -> None:
    """Parts that a call which makes another file has left."""
    facts = parts / _ASKED
    if facts.exists() and read_json(facts, f"delete {parts}") != json.loads(json.dumps(asked)):
        raise UserError(
            f"{parts} holds parts of another call (other files, run or options): delete it, or take another --out"
        )


def _make_parts(model: UserModel, users: UsersFile, parts: Path, options: argparse.Namespace) -> None:
    done = sorted(parts.glob("part-*.parquet"))
    answered = sum(int(pq.read_metadata(part).metadata[_USERS]) for part in done)
    with tqdm(total=users.count, initial=answered, unit="user", dynamic_ncols=True) as bar:
        for number, some in enumerate(users.batches(PART, skip=answered), start=len(done)):
            rows = [row for size in _spans(len(some.users)) for row in _answers(model, some, size, options, bar)]
            with replacing(parts / f"part-{number:06}.parquet") as partial:
                told = SCHEMA.with_metadata({_USERS: str(len(some.users))})
                pq.write_table(pa.Table.from_pylist(rows, told), partial)


def _spans(count: int) -> Iterator[slice]:
    return (slice(start, start + BATCHES[-1]) for start in range(0, count, BATCHES[-1]))


def _answers(
    model: UserModel, users: UserEvents, span: slice, options: argparse.Namespace, bar: tqdm
) -> Iterator[dict[str, Any]]:
    read = {"history/item": users.item[span], "history/rating": users.rating[span]}
    if model.events.reads_times:
        newest = users.seconds[span][:, -1:]
        if options.now is not None:
            for row in np.flatnonzero(newest[:, 0] > options.now)[:1]:
                raise UserError(
                    f"user {users.users[span][row]}: the newest event is of {newest[row, 0]}, behind "
                    f"--now={options.now:g}: take a later --now"
                )
            newest = np.full((1, 1), int(options.now))
        ago = np.where(read["history/item"] > 0, newest - users.seconds[span], 0)
        read["history/ago"] = np.clip(ago, 0, np.iinfo(np.int32).max).astype(np.int32)
    encoded = model.encode_arrays(read, query=options.answers in ("fused", "encoder"))
    found = model.recommend(encoded, options.k, answers=options.answers)
    for user, answers in zip(users.users[span], found, strict=True):
        for rank, answer in enumerate(answers, start=1):
            item = model.catalogue.raw_ids[model.events.items[answer.text]]
            yield {"user": user, "rank": rank, "item": item, "title": answer.text, "score": answer.score}
    bar.update(len(found))


def _join(parts: Path, out: Path) -> None:
    """One file of all parts, in order; then the parts go."""
    with replacing(out) as partial, pq.ParquetWriter(partial, SCHEMA) as writer:
        for part in sorted(parts.glob("part-*.parquet")):
            writer.write_table(pq.read_table(part).replace_schema_metadata())
    shutil.rmtree(parts)


def _share(text: str) -> float:
    if not 0 <= (share := float(text)) <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return share


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="user-llm recommend", description="Recommends items to all users of some files of events."
    )
    parser.add_argument("--workdir", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--users", nargs="+", required=True, help="CSV, JSON lines or Parquet; one row an event")
    parser.add_argument(
        "--columns",
        nargs="+",
        default=["user=user", "item=item", "timestamp=timestamp"],
        metavar="role=column",
        help="which column is which: user, item, timestamp; rating, where the encoder reads it",
    )
    parser.add_argument("--by", choices=("id", "title"), default="id", help="what the column item holds (id)")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file for the answers")
    parser.add_argument("--k", type=int, default=10, help="answers a user (10)")
    parser.add_argument(
        "--answers", choices=ANSWERS, default="beams", help="of the LLM (beams, exact), its encoder, or both (fused)"
    )
    parser.add_argument(
        "--unknown", choices=("error", "skip"), default="error", help="events of unknown items or ratings"
    )
    parser.add_argument("--max_malformed", type=_share, default=0.0, help="share of the rows that may be malformed (0)")
    parser.add_argument("--now", type=float, help="when all are asked, in seconds since 1970 (encoder.time=asked)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        recommend(options)
    except Exception as error:
        return show(error, doing=f"{options.out} was not written")
    print(f"{options.out}: {pq.read_metadata(options.out).num_rows:,} answers")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

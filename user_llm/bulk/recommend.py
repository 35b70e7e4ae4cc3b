"""Recommendations for all users of some files, or of a store:

    user-llm recommend --workdir=RUN --users events.csv --columns user=userId item=movieId timestamp=timestamp \\
        rating=rating --out=recommendations.parquet [--k=10] [--answers=fused] [--unknown=skip]
    user-llm recommend --workdir=RUN --store=STORE --out=recommendations.parquet

Each line of the result is an answer: user, rank from 1, item (the run's id of it), title, score. A run that is stopped
goes on with the same command.
"""

import argparse
import hashlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from user_llm.api import UserModel, load
from user_llm.arguments import whole
from user_llm.asking import BATCHES
from user_llm.bulk.parts import Parts
from user_llm.bulk.reading import OF_FILES, add_arguments, asked_of, opened, read_of, refuse_ignored, run_of
from user_llm.bulk.users import UsersFile
from user_llm.embeddings import UserEmbeddings
from user_llm.errors import UserError, show
from user_llm.store.user_store import UserStore
from user_llm.tasks.next_item import ANSWERS

SCHEMA = pa.schema(
    {"user": pa.string(), "rank": pa.int32(), "item": pa.string(), "title": pa.string(), "score": pa.float32()}
)

Batch = tuple[list[str], UserEmbeddings]
"""Some users, and what the run has made of their events."""


def recommend(options: argparse.Namespace) -> None:
    """Writes `options.out`.

    Raises:
      UserError: rows that cannot be used, more than the options allow; parts of another call.
    """
    whole("--k", options.k, 1)
    if bool(options.users) == bool(options.store):
        raise UserError("name either files of events with --users, or a store with --store")
    model = load(options.workdir)
    model.events.check_now(options.now, "--now")
    kept = {"run": run_of(options), **{name: getattr(options, name) for name in ("k", "answers", "now")}}
    if options.store:
        with UserStore(model, options.store, create=False) as store:
            names = sorted(store.users())
            digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
            parts = Parts(options.out, {"store": options.store, "users": digest, **kept})
            batches = _of_store(store, names[parts.done :])
            parts.write(SCHEMA, _tables(model, options, batches), len(names))
        return
    parts = Parts(options.out, {**asked_of(options), **kept})
    with opened(model, options) as users:
        batches = _of_files(model, users, options, parts.done)
        parts.write(SCHEMA, _tables(model, options, batches), users.count)


def _of_store(store: UserStore, names: list[str]) -> Iterator[Batch]:
    for start in range(0, len(names), BATCHES[-1]):
        some = names[start : start + BATCHES[-1]]
        yield some, store.get_many(some, missing="empty")  # somebody may have deleted them meanwhile


def _of_files(model: UserModel, users: UsersFile, options: argparse.Namespace, skip: int) -> Iterator[Batch]:
    for some in users.batches(BATCHES[-1], skip=skip):
        read = read_of(model, some, options.now)
        yield some.users, model.encode_arrays(read, query=options.answers in ("fused", "encoder"))


def _tables(model: UserModel, options: argparse.Namespace, batches: Iterator[Batch]) -> Iterator[tuple[pa.Table, int]]:
    for batch in batches:
        yield pa.Table.from_pylist(list(_answers(model, batch, options)), SCHEMA), len(batch[0])


def _answers(
    model: UserModel, batch: Batch, options: argparse.Namespace
) -> Iterator[dict[str, str | int | float | None]]:
    names, users = batch
    found = model.recommend(users, options.k, answers=options.answers)
    for user, answers in zip(names, found, strict=True):
        for rank, answer in enumerate(answers, start=1):
            item = model.catalogue.raw_ids[model.events.items[answer.text]]
            yield {"user": user, "rank": rank, "item": item, "title": answer.text, "score": answer.score}


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="user-llm recommend", description="Recommends items to all users of some files of events, or of a store."
    )
    add_arguments(parser, required=False)
    parser.add_argument("--store", help="folder or server of a store (user-llm embed), in place of --users")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file for the answers")
    parser.add_argument("--k", type=int, default=10, help="answers a user (10)")
    parser.add_argument(
        "--answers", choices=ANSWERS, default="beams", help="of the LLM (beams, exact), its encoder, or both (fused)"
    )
    parser.add_argument("--now", type=float, help="when all are asked, in seconds since 1970 (encoder.time=asked)")
    options = parser.parse_args(arguments)
    if options.store:
        refuse_ignored(parser, options, "--store", OF_FILES)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        recommend(options)
    except Exception as error:
        return show(error, doing=f"{options.out} was not written")
    print(f"{options.out}: {pq.read_metadata(options.out).num_rows:,} answers")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

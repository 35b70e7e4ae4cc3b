"""Recommendations for all users of some files, or of a store:

    user-llm recommend --workdir=RUN --users events.csv --columns user=userId item=movieId timestamp=timestamp \\
        rating=rating --out=recommendations.parquet [--k=10] [--answers=fused] [--unknown=skip]
    user-llm recommend --workdir=RUN --store=STORE --out=recommendations.parquet

Each line of the result is an answer: user, rank from 1, item (the run's id of it), title, score. A run that is stopped
goes on with the same command.
"""

import argparse
import itertools
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from user_llm.api import UserModel, load
from user_llm.arguments import whole
from user_llm.asking import BATCHES
from user_llm.bulk.parts import Parts
from user_llm.bulk.reading import add_arguments, asked_of, opened, read_of
from user_llm.bulk.users import UsersFile
from user_llm.embeddings import UserEmbeddings
from user_llm.errors import UserError, show
from user_llm.store.user_store import UserStore
from user_llm.tasks.next_item import ANSWERS

PART = 4096  # users of a part, which a stop may cost
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
    if options.store:
        with UserStore(model, options.store) as store:
            names = sorted(store.users())
            if not names:
                raise UserError(f"{options.store} has no users: fill it with user-llm embed --store={options.store}")
            parts = Parts(options.out, {"store": options.store, "users": names, **_of_answers(options)})
            done = parts.users()
            _answer(model, options, parts, _of_store(store, names[done:]), done, len(names))
        return
    parts = Parts(options.out, {**asked_of(options), **_of_answers(options)})
    with opened(model, options) as users:
        done = parts.users()
        _answer(model, options, parts, _of_files(model, users, options, done), done, users.count)


def _of_answers(options: argparse.Namespace) -> dict[str, object]:
    return {name: getattr(options, name) for name in ("k", "answers", "now")}


def _of_store(store: UserStore, names: list[str]) -> Iterator[Batch]:
    for start in range(0, len(names), BATCHES[-1]):
        some = names[start : start + BATCHES[-1]]
        yield some, store.get_many(some)


def _of_files(model: UserModel, users: UsersFile, options: argparse.Namespace, skip: int) -> Iterator[Batch]:
    for some in users.batches(BATCHES[-1], skip=skip):
        read = read_of(model, some, options.now)
        yield some.users, model.encode_arrays(read, query=options.answers in ("fused", "encoder"))


def _answer(
    model: UserModel, options: argparse.Namespace, parts: Parts, batches: Iterator[Batch], done: int, count: int
) -> None:
    with tqdm(total=count, initial=done, unit="user", dynamic_ncols=True) as bar:

        def tables() -> Iterator[tuple[pa.Table, int]]:
            while some := list(itertools.islice(batches, max(1, PART // BATCHES[-1]))):
                rows = [row for batch in some for row in _answers(model, batch, options, bar)]
                yield pa.Table.from_pylist(rows, SCHEMA), sum(len(names) for names, _ in some)

        parts.write(tables())
    parts.join(SCHEMA)


def _answers(
    model: UserModel, batch: Batch, options: argparse.Namespace, bar: tqdm
) -> Iterable[dict[str, str | int | float | None]]:
    names, users = batch
    found = model.recommend(users, options.k, answers=options.answers)
    for user, answers in zip(names, found, strict=True):
        for rank, answer in enumerate(answers, start=1):
            item = model.catalogue.raw_ids[model.events.items[answer.text]]
            yield {"user": user, "rank": rank, "item": item, "title": answer.text, "score": answer.score}
    bar.update(len(found))


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
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        recommend(options)
    except Exception as error:
        return show(error, doing=f"{options.out} was not written")
    print(f"{options.out}: {pq.read_metadata(options.out).num_rows:,} answers")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What a run makes of all users of some files: vectors in a Parquet file, or a store to ask and to bring up to date:

    user-llm embed --workdir=RUN --users events.csv --out=vectors.parquet
    user-llm embed --workdir=RUN --users events.csv --store=STORE [--dtype=bfloat16]

Each line of the file is a user with the vectors that its language model reads. A file that is stopped goes on with the
same command; a store is written anew.
"""

import argparse
import itertools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from user_llm.api import UserModel, load
from user_llm.asking import BATCHES
from user_llm.bulk.parts import Parts
from user_llm.bulk.reading import add_arguments, asked_of, opened, read_of
from user_llm.bulk.users import UserEvents, UsersFile
from user_llm.errors import UserError, show
from user_llm.store.records import DTYPES
from user_llm.store.user_store import UserStore

PART = 4096  # users of a part, which a stop may cost
SCHEMA = pa.schema({"user": pa.string(), "embeddings": pa.list_(pa.list_(pa.float32()))})


def embed(options: argparse.Namespace) -> int:
    """Writes `options.out` or `options.store`; how many users.

    Raises:
      UserError: rows that cannot be used, more than the options allow; parts of another call.
    """
    if bool(options.out) == bool(options.store):
        raise UserError("name either a file with --out, or a store with --store")
    model = load(options.workdir)
    model.events.check_now(options.now, "--now")
    if options.store:
        with UserStore(model, options.store, dtype=options.dtype) as store, opened(model, options) as users:
            return _to_store(model, users, store)
    parts = Parts(options.out, asked_of(options, "now"))
    with opened(model, options) as users:
        return _to_file(model, users, parts, options.now)


def _to_store(model: UserModel, users: UsersFile, store: UserStore) -> int:
    with tqdm(total=users.count, unit="user", dynamic_ncols=True) as bar:
        for some in users.batches(PART):
            store.put_arrays(some.users, read_of(model, some), some.seconds[:, -1])
            bar.update(len(some.users))
    return users.count


def _to_file(model: UserModel, users: UsersFile, parts: Parts, now: float | None) -> int:
    done = parts.users()
    batches = users.batches(BATCHES[-1], skip=done)
    with tqdm(total=users.count, initial=done, unit="user", dynamic_ncols=True) as bar:

        def tables() -> Iterator[tuple[pa.Table, int]]:
            while some := list(itertools.islice(batches, max(1, PART // BATCHES[-1]))):
                yield (
                    pa.concat_tables([_vectors(model, batch, now, bar) for batch in some]),
                    sum(len(batch.users) for batch in some),
                )

        parts.write(tables())
    parts.join(SCHEMA)
    return users.count


def _vectors(model: UserModel, users: UserEvents, now: float | None, bar: tqdm) -> pa.Table:
    made = model.encode_arrays(read_of(model, users, now))
    vectors = [list(own[mask]) for own, mask in zip(made.embeddings, made.mask, strict=True)]
    bar.update(len(made))
    return pa.table({"user": users.users, "embeddings": vectors}, SCHEMA)


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="user-llm embed", description="Encodes all users of some files of events, into a file or a store."
    )
    add_arguments(parser)
    parser.add_argument("--out", type=Path, help="Parquet file for the vectors")
    parser.add_argument("--store", help="folder of a store, or its server: redis://host:6379/0")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="of a new store's vectors (float32)")
    parser.add_argument("--now", type=float, help="when all are asked, in seconds since 1970 (encoder.time=asked)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        count = embed(options)
    except Exception as error:
        return show(error, doing=f"{options.out or options.store} was not written as a whole")
    print(f"{options.out or options.store}: {count:,} users")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

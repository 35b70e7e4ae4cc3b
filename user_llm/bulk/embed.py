"""What a run makes of all users of some files: vectors in a Parquet file, or a store to ask and to bring up to date:

    user-llm embed --workdir=RUN --users events.csv --out=vectors.parquet
    user-llm embed --workdir=RUN --users events.csv --store=STORE [--dtype=bfloat16]

Each line of the file is a user with the vectors that its language model reads. A file that is stopped goes on with the
same command; a store is written anew.
"""

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from user_llm.api import UserModel, load
from user_llm.asking import BATCHES
from user_llm.bulk.parts import PART, Parts
from user_llm.bulk.reading import add_arguments, asked_of, opened, read_of, refuse_ignored, run_of
from user_llm.bulk.users import UserEvents, UsersFile
from user_llm.errors import UserError, show
from user_llm.store.records import DTYPES
from user_llm.store.user_store import UserStore

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
    if model.config.integration.kind == "none":
        raise UserError(f"the LLM of {options.workdir} reads no embeddings: there is nothing to write")
    parts = Parts(options.out, {"run": run_of(options), **asked_of(options), "now": options.now})
    with opened(model, options) as users:
        parts.write(SCHEMA, _tables(model, users.batches(BATCHES[-1], skip=parts.done), options.now), users.count)
        return users.count


def _to_store(model: UserModel, users: UsersFile, store: UserStore) -> int:
    with tqdm(total=users.count, unit="user", dynamic_ncols=True) as bar:
        for some in users.batches(PART):
            store.put_arrays(some.users, read_of(model, some))
            bar.update(len(some.users))
    return users.count


def _tables(model: UserModel, batches: Iterator[UserEvents], now: float | None) -> Iterator[tuple[pa.Table, int]]:
    for users in batches:
        made = model.encode_arrays(read_of(model, users, now))
        vectors = [list(own[mask]) for own, mask in zip(made.embeddings, made.mask, strict=True)]
        yield pa.table({"user": users.users, "embeddings": vectors}, SCHEMA), len(made)


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
    refuse_ignored(parser, options, *(("--store", ("now",)) if options.store else ("--out", ("dtype",))))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        count = embed(options)
    except Exception as error:
        return show(error, doing=f"{options.out or options.store} was not written as a whole")
    print(f"{options.out or options.store}: {count:,} users")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

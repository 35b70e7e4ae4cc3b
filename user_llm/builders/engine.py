"""Who builds: DuckDB on this machine, or Apache Beam by many workers; as the command names it."""

import argparse
import importlib
from types import ModuleType
from typing import Any

from user_llm.errors import UserError

ENGINES = ("duckdb", "beam")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments about who builds."""
    parser.add_argument(
        "--engine", choices=ENGINES, default=ENGINES[0], help="who builds: duckdb, on this machine (default), or beam"
    )
    parser.add_argument(
        "--beam_options", metavar="name=value,…", help="options of Apache Beam, as runner=DataflowRunner,project=…"
    )
    parser.add_argument("--dry_run", action="store_true", help="build nothing: check what is given, and say who builds")


def beam_options(options: argparse.Namespace) -> Any:
    """Beam's options for TFDS' `DownloadConfig`; None where DuckDB builds.

    Raises:
      UserError: they belong to another engine, or see `runner.parse_options` and `beam_runner`.
    """
    if options.engine == "beam":
        return beam_runner().parse_options(options.beam_options or "")
    if options.beam_options is not None:
        raise UserError("--beam_options belongs to --engine=beam: give that too, or leave both out.")
    return None


def describe(beam: Any) -> str:
    """Who builds, in a line: `beam` is what `beam_options` gave."""
    if beam is None:
        return "engine: duckdb, on this machine"
    return f"engine: beam, {beam_runner().describe(beam)}; every worker has to see the raw files and data_dir"


def beam_runner() -> ModuleType:
    """`beam.runner`, which alone imports Apache Beam.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module("user_llm.builders.beam.runner")
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise UserError(
            "Apache Beam is not installed here: it needs an older protobuf and pyarrow than this package. "
            "`make beam` makes .venv-beam, whose user-llm build has it."
        ) from None

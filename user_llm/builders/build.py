"""Builds a dataset: `user-llm build movielens/latest_small --raw_path=ml-latest-small.zip`.

TFDS's own command does the same but needs packages (apache_beam, mlcroissant) that its Python API does without.
"""

import argparse
import dataclasses
import logging
import os
import sys
from typing import Any, cast

import tensorflow_datasets as tfds

from user_llm.builders import built, engine
from user_llm.builders.builder import TimelineBuilder
from user_llm.builders.custom import command as custom_command
from user_llm.builders.families import FAMILIES, builder_of
from user_llm.builders.simulated import SimulatedConfig
from user_llm.errors import UserError, show


def summary_text(metadata: dict) -> str:
    """A built dataset's summary (`info.metadata`) for people: rows, users, timeline lengths, windows."""
    summary = metadata["summary"]
    lines = []
    for file, rows in summary["files"].items():
        lines.append(f"{file}: {rows['read']:,} rows read, {rows['kept']:,} kept")
        lines += [f"  left out, {reason}: {rejected['rows']:,}" for reason, rejected in rows["rejected"].items()]
        lines += [
            f"  {'left out' if applied['dropped'] else 'kept'} by rule, {rule}: {applied['rows']:,}"
            for rule, applied in rows["rules"].items()
        ]
    lines.append(
        f"{summary['users']:,} users, {summary['events']:,} events, {summary['items']:,} items "
        f"({summary['items_with_events']:,} with events), "
        f"{summary['repeated_user_item_rows']:,} events repeat an item of their user"
    )
    lengths = (f"{name} {length:,.0f}" for name, length in summary["timeline_length"].items())
    lines.append(f"timeline length: {', '.join(lengths)}")
    for history_length, windows in summary["windows"].items():
        lines.append(
            f"windows of {history_length} events and a label: {windows['users']:,} users, "
            f"{windows['train']:,} train, {windows['test']:,} test"
        )
    lines.append(f"fingerprint: {metadata['fingerprint']}")
    return "\n".join(lines)


def parse_simulated(settings: list[str]) -> SimulatedConfig:
    """A SimulatedConfig from `name=value` words.

    Raises:
      UserError: a name is not one of its attributes, or a value not of the attribute's type.
    """
    types = {field.name: cast(type, field.type) for field in dataclasses.fields(SimulatedConfig)}
    values: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in types:
            raise UserError(f"--simulated {setting}: expected name=value with a name of {', '.join(types)}.")
        try:
            values[name] = types[name](value)
        except ValueError:
            raise UserError(f"--simulated {setting}: {value!r} is not of type {types[name].__name__}.") from None
    return SimulatedConfig(**values)


def parse_options(builder: type[TimelineBuilder], settings: list[str]) -> dict[str, int | str]:
    """A builder's options from `name=value` words.

    Raises:
      UserError: the family has no such option, or the value is not of its type.
    """
    options = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in builder.OPTIONS:
            known = ", ".join(builder.OPTIONS) or "none"
            raise UserError(f"--option {setting}: expected name=value; the options of this dataset: {known}.")
        try:
            options[name] = type(builder.OPTIONS[name])(value)
        except ValueError:
            raise UserError(f"--option {setting}: {value!r} is not a whole number.") from None
    return options


def verify(builder: TimelineBuilder) -> str:
    """Compares every byte of a built dataset with what its build wrote; returns what was compared.

    Raises:
      UserError: it is not built, or has changed.
    """
    if not built.is_finished(builder.data_path):
        raise UserError(f"{builder.data_path} is not there, or was not built to its end: build it without --verify.")
    return built.check(builder.data_path, sampled=False)


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status: 0, or another with the error on stderr, `BUSY` or 1."""
    parser = argparse.ArgumentParser(
        prog="user-llm build",
        description="Builds a dataset of one timeline per user, and prints what went into it.",
    )
    parser.add_argument("dataset", help="family/config, as movielens/latest_small")
    parser.add_argument("--data_dir", help="where to; TFDS_DATA_DIR or ~/tensorflow_datasets by default")
    parser.add_argument("--raw_path", help="zip, or folder with the raw files; downloaded when left out")
    parser.add_argument("--manual_dir", help="a folder that may hold releases under their published names")
    parser.add_argument(
        "--max_malformed", type=float, default=0.0, help="fraction of a file's rows that may be left out (0)"
    )
    parser.add_argument(
        "--simulated", nargs="*", metavar="name=value", help="settings of the simulation, such as num_users=5000"
    )
    parser.add_argument("--option", nargs="*", default=[], metavar="name=value", help="options of the dataset")
    parser.add_argument("--verify", action="store_true", help="build nothing, but check every byte of what is built")
    engine.add_arguments(parser)
    custom_command.add_arguments(parser)
    options = parser.parse_args(arguments)
    family, _, name = options.dataset.partition("/")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if options.manual_dir is not None and not os.path.isdir(os.path.expanduser(options.manual_dir)):
            raise UserError(f"manual_dir {options.manual_dir!r} is no folder: name one, or leave it out.")
        beam = engine.beam_options(options)
        builder = builder_of(
            options.dataset,
            config=custom_command.config_from_arguments(name, options) if custom_command.given(options) else None,
            data_dir=options.data_dir,
            raw_path=options.raw_path,
            max_malformed=options.max_malformed,
            simulated=None if options.simulated is None else parse_simulated(options.simulated),
            options=parse_options(FAMILIES.get(family, TimelineBuilder), options.option),
        )
        if options.verify:
            print(verify(builder))
            return 0
        if options.dry_run:
            print(f"{options.dataset} would be built into {builder.data_dir}\n{engine.describe(beam)}")
            return 0
        config = tfds.download.DownloadConfig(manual_dir=options.manual_dir, beam_options=beam)
        builder.download_and_prepare(download_config=config)
    except Exception as error:
        return show(error, doing=f"{options.dataset} was not {'verified' if options.verify else 'built'}")
    print(summary_text(builder.info.metadata))
    return 0


def cli() -> None:
    """Entry point."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    cli()

"""The command line that all launchers share: which tables, at which scale, where the data lie."""

import argparse
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from user_llm.config import ConfigError, refuse
from user_llm.errors import UserError
from user_llm.launch.plan import Plan
from user_llm.launch.recipe import DERIVED
from user_llm.launch.resolve import Overrides, parse_setting, resolve
from user_llm.launch.runs import Run
from user_llm.launch.scales import DATASETS, SCALES
from user_llm.launch.sweeps import TABLES, tables_of
from user_llm.paths import local_path


def sweep_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with the flags of a sweep; a launcher adds its own."""
    parser = argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tables", required=True, type=_names(tuple(TABLES), "table"), help=f"all, or some of {','.join(TABLES)}")
    add("--scale", required=True, choices=SCALES, help="the paper's datasets and sizes, or smaller ones")
    add("--out", required=True, type=_folder, help="folder of the sweep")
    add("--datasets", default=DATASETS, type=_names(DATASETS, "dataset"), help=f"some of {','.join(DATASETS)} (all)")
    add("--seeds", default=(0,), type=_seeds, help="comma between them (0)")
    add("--jobs", default=1, type=_positive, help="runs at a time (1)")
    add("--raw", nargs="+", action=_Raw, default={}, metavar="DATASET=PATH", help="raw files that you have")
    add("--data_dir", default="", help="where built datasets live (the configs')")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="config keys of every run")
    return parser


Problems = Callable[[ConfigDict, Collection[str]], Iterable[str]]
"""Of a config, and the keys whose places other runs will have filled: a line for each value that cannot be."""


def plan_of(arguments: argparse.Namespace, problems: Problems) -> Plan:
    """The sweep that the command line asks for; nothing is written.

    Args:
      problems: `experiment.validation.problems`, or what of it needs no JAX.

    Raises:
      ConfigError: a table or dataset that the scale has not; a setting that is no key of the configs, or one that the
        tables vary themselves; a run whose config cannot be; a folder that holds something else.
    """
    scale = arguments.scale
    tables = _there(scale, "table", arguments.tables, tuple(TABLES), tables_of(scale))
    datasets = _there(scale, "dataset", arguments.datasets, DATASETS, tuple(SCALES[scale].settings))
    settings = tuple(parse_setting(setting) for setting in arguments.set)
    borrowed = tuple(setting for setting in settings if setting[0] == "llm.checkpoint")
    bare = Plan(scale, arguments.seeds, borrowed, tables, datasets)
    own = {key for run in bare.runs() for key, _ in run.values(Path())} - {key for key, _ in borrowed} - DERIVED
    keys = [key for key, _ in settings]
    for key in keys:
        if key in own:
            raise ConfigError(f"--set {key}: the tables give {key} its values; leave it out")
        if keys.count(key) > 1:
            raise ConfigError(f"--set {key}: it has {keys.count(key)} values; name one")
    plan = Plan(scale, arguments.seeds, settings, tables, datasets)
    found: dict[str, str] = {}  # problem → the first run that has it
    for run in plan.runs():
        places = places_of(run, arguments.raw, arguments.data_dir)
        config = resolve(run.config, [*run.values(arguments.out), *places])
        for problem in problems(config, run.awaited):
            found.setdefault(problem, run.name)
    refuse(f"{problem} (run {name})" for problem, name in found.items())
    plan.joined(arguments.out)
    return plan


def _there(scale: str, what: str, asked: Sequence[str], every: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """What was asked for; of all, that which the scale has."""
    if tuple(asked) == tuple(every):
        return tuple(name for name in every if name in known)
    if strange := [name for name in asked if name not in known]:
        raise ConfigError(f"scale {scale} has no {what} {', '.join(strange)}: it has {', '.join(known)}")
    return tuple(asked)


def places_of(run: Run, raw: Mapping[str, str], data_dir: str) -> Overrides:
    """The keys that say where a run's data lie on this machine."""
    places = [("data.raw_path", raw.get(run.dataset, "")), ("data.data_dir", data_dir if run.dataset else "")]
    return tuple((key, value) for key, value in places if value)


def _names(known: Sequence[str], what: str):
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(known) if text == "all" else tuple(dict.fromkeys(text.split(",")))
        wrong = [name for name in names if name not in known]
        if wrong:
            raise argparse.ArgumentTypeError(
                f"no {what} {', '.join(wrong)}: expected all, or some of {','.join(known)}"
            )
        return names

    return parse


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a folder")
    try:
        return local_path(text, "--out")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(seed) for seed in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError("expected whole numbers with commas between them, as 0,1") from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("expected a whole number of at least 1")
    return int(text)


class _Raw(argparse.Action):
    """Collects `DATASET=PATH`."""

    def __call__(self, parser, namespace, values, option_string=None):
        raw = dict(getattr(namespace, self.dest))
        for text in values:
            dataset, equals, path = text.partition("=")
            if not equals or dataset not in DATASETS:
                parser.error(f"--raw {text}: expected DATASET=PATH with a dataset of {', '.join(DATASETS)}")
            if not Path(path).exists():
                parser.error(f"--raw {text}: no such file or folder")
            raw[dataset] = path
        setattr(namespace, self.dest, raw)

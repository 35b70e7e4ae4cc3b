"""The command line that all launchers share: which tables, at which scale, where the data lie."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.plan import Plan
from launch.resolve import Overrides, parse_setting
from launch.runs import Run
from launch.scales import DATASETS, SCALES
from launch.sweeps import TABLES
from user_llm.config import ConfigError


def sweep_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with the flags of a sweep; a launcher adds its own."""
    parser = argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tables", required=True, type=_names(tuple(TABLES), "table"), help=f"all, or some of {','.join(TABLES)}")
    add("--scale", required=True, choices=SCALES, help="the paper's datasets and sizes, or small ones")
    add("--out", required=True, type=Path, help="folder of the sweep")
    add("--datasets", default=DATASETS, type=_names(DATASETS, "dataset"), help=f"some of {','.join(DATASETS)} (all)")
    add("--seeds", default=(0,), type=_seeds, help="comma between them (0)")
    add("--jobs", default=1, type=_positive, help="runs at a time (1)")
    add("--raw", nargs="+", action=_Raw, default={}, metavar="DATASET=PATH", help="raw files that you have")
    add("--data_dir", default="", help="where built datasets live (the configs')")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="config keys of every run")
    return parser


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The sweep that the command line asks for.

    Raises:
      ConfigError: a setting that is no key of the configs, or one that the tables vary themselves.
    """
    file = next(iter(SCALES[arguments.scale].settings.values())).config
    settings = tuple(parse_setting(setting, file) for setting in arguments.set)
    borrowed = tuple(setting for setting in settings if setting[0] == "llm.checkpoint")
    bare = Plan(arguments.scale, arguments.seeds, borrowed, arguments.tables, arguments.datasets)
    own = {key for run in bare.runs() for key, _ in run.values(Path())} - {key for key, _ in borrowed}
    for key, _ in settings:
        if key in own:
            raise ConfigError(f"--set {key}: the tables give {key} its values; leave it out")
    return Plan(arguments.scale, arguments.seeds, settings, arguments.tables, arguments.datasets)


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

"""What a sweep is about, kept in its folder (`sweep.json`), so that its report and its next call know."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from user_llm.config import ConfigError, refuse
from user_llm.files import replacing
from user_llm.keys import wrong_key
from user_llm.launch.kept import kept
from user_llm.launch.resolve import Overrides
from user_llm.launch.runs import Run, with_needs
from user_llm.launch.scales import DATASETS, SCALES
from user_llm.launch.sweeps import TABLES, Cell, cells, most_informative_first

PLAN = "sweep.json"
_RUN = "config.json"  # what `user_llm.main` leaves in its workdir


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep.

    Attributes:
        scale: of `scales.SCALES`.
        seeds: of the runs.
        settings: (config key, value) of every run.
        tables, datasets: what was asked for, over all calls.
    """

    scale: str
    seeds: tuple[int, ...]
    settings: Overrides
    tables: tuple[str, ...]
    datasets: tuple[str, ...]

    def cells(self, table: str, datasets: Sequence[str] = DATASETS) -> list[Cell]:
        """The cells of a table, asked for or not."""
        return cells(table, self.scale, self.seeds, datasets, self.settings)

    def runs(self) -> list[Run]:
        """The runs of the tables that were asked for, each once and after those it needs.

        Seed by seed, and of a seed those of the most informative tables first.
        """
        tables = most_informative_first(self.tables)
        wanted = [cell for table in tables for cell in self.cells(table, self.datasets)]
        by_seed = [cell.runs[index] for index in range(len(self.seeds)) for cell in wanted if index < len(cell.runs)]
        return with_needs(by_seed)

    def joined(self, out: Path) -> "Plan":
        """This plan and the one in `out`, where there is one.

        Raises:
          ConfigError: a run lives there, or a sweep of another scale or with other settings.
        """
        before = _read(out)
        if before is None:
            if (out / _RUN).exists():
                raise ConfigError(f"{out} holds a run, no sweep ({_RUN} is there, {PLAN} is not): name another --out")
            return self
        if (before.scale, before.settings) != (self.scale, self.settings):
            raise ConfigError(
                f"{out} holds a sweep of scale {before.scale} with settings {dict(before.settings)}; this one has "
                f"scale {self.scale} and settings {dict(self.settings)}: name another --out"
            )
        return dataclasses.replace(
            self,
            seeds=tuple(sorted({*before.seeds, *self.seeds})),
            tables=tuple(name for name in TABLES if name in {*before.tables, *self.tables}),
            datasets=tuple(name for name in DATASETS if name in {*before.datasets, *self.datasets}),
        )

    def save(self, out: Path) -> "Plan":
        """Adds this plan to the one in `out`, and returns what is there now.

        Raises:
          ConfigError: see `joined`.
        """
        plan = self.joined(out)
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / PLAN) as partial:
            partial.write_text(json.dumps(dataclasses.asdict(plan), indent=1) + "\n")
        return plan

    @classmethod
    def load(cls, out: Path) -> "Plan":
        """The plan in `out`.

        Raises:
          ConfigError: there is none, or a damaged one.
        """
        plan = _read(out)
        if plan is None:
            raise ConfigError(f"{out} has no {PLAN}: name the --out of a sweep that user-llm sweep ran")
        return plan


def _read(out: Path) -> Plan | None:
    return kept(out / PLAN, _parsed, "delete it and start the launcher again, which leaves finished runs as they are")


def _parsed(text: str) -> Plan:
    values = json.loads(text)
    settings = tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in values["settings"])
    refuse(line for setting in settings for line in wrong_key(*setting))
    seeds, tables, datasets = (tuple(values[name]) for name in ("seeds", "tables", "datasets"))
    for names, known in (((values["scale"],), SCALES), (tables, TABLES), (datasets, DATASETS)):
        if strange := [name for name in names if name not in known]:
            raise LookupError(f"there is no {strange[0]!r}")
    return Plan(values["scale"], tuple(map(int, seeds)), settings, tables, datasets)

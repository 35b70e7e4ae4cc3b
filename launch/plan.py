"""What a sweep is about, kept in its folder (`sweep.json`), so that its report and its next call know."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from launch.resolve import Overrides
from launch.runs import Run, with_needs
from launch.scales import DATASETS
from launch.sweeps import TABLES, Cell, cells
from user_llm.config import ConfigError
from user_llm.files import replacing

PLAN = "sweep.json"


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
        """The runs of the tables that were asked for, each once and after those it needs; seed by seed."""
        wanted = [cell for table in self.tables for cell in self.cells(table, self.datasets)]
        by_seed = [cell.runs[index] for index in range(len(self.seeds)) for cell in wanted if index < len(cell.runs)]
        return with_needs(by_seed)

    def save(self, out: Path) -> "Plan":
        """Adds this plan to the one in `out`, and returns what is there now.

        Raises:
          ConfigError: a sweep of another scale, or with other settings, lives there.
        """
        plan = self
        if (out / PLAN).is_file():
            before = Plan.load(out)
            if (before.scale, before.settings) != (self.scale, self.settings):
                raise ConfigError(
                    f"{out} holds a sweep of scale {before.scale} with settings {dict(before.settings)}; this one has "
                    f"scale {self.scale} and settings {dict(self.settings)}: name another --out"
                )
            plan = dataclasses.replace(
                self,
                seeds=tuple(sorted({*before.seeds, *self.seeds})),
                tables=tuple(name for name in TABLES if name in {*before.tables, *self.tables}),
                datasets=tuple(name for name in DATASETS if name in {*before.datasets, *self.datasets}),
            )
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / PLAN) as partial:
            partial.write_text(json.dumps(dataclasses.asdict(plan), indent=1) + "\n")
        return plan

    @classmethod
    def load(cls, out: Path) -> "Plan":
        """The plan in `out`.

        Raises:
          ConfigError: there is none.
        """
        try:
            values = json.loads((out / PLAN).read_text())
        except FileNotFoundError:
            raise ConfigError(
                f"{out} has no {PLAN}: name the --out of a sweep that python -m launch.local ran"
            ) from None
        settings = tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in values["settings"])
        return cls(
            values["scale"], tuple(values["seeds"]), settings, tuple(values["tables"]), tuple(values["datasets"])
        )

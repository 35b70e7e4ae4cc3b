"""A run of a sweep, made from a model of the paper (`models.py`), a setting (`scales.py`) and a seed."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from user_llm.keys import as_flag
from user_llm.launch.models import AUTOREGRESSIVE, DUAL_ENCODER, Model
from user_llm.launch.resolve import Overrides, config_hash
from user_llm.launch.scales import Scale, Setting

MAIN, EFFICIENCY = "user_llm.main", "user_llm.efficiency"
SHORT = 10  # latest events as text, of TP10 and AR50TP10


@dataclasses.dataclass(frozen=True)
class Run:
    """One start of a program; what it leaves is in the folder `<out>/<name>`.

    Attributes:
        label: what it is, readable.
        dataset: of the paper's three; "" = none.
        config: file of the experiment, with its task behind a colon.
        overrides: (config key, value), in the order of the command line.
        encoder, llm: the runs whose encoder and language model it reads.
        program: the module that is started.
    """

    label: str
    dataset: str
    config: str
    overrides: Overrides = ()
    encoder: "Run | None" = None
    llm: "Run | None" = None
    program: str = MAIN

    @functools.cached_property
    def name(self) -> str:
        """The label and the hash of the resolved config: equal runs of different tables are one."""
        return f"{self.label}-{config_hash(self.config, self.values(Path()))}"

    @property
    def needs(self) -> tuple["Run", ...]:
        """The runs that must be finished before."""
        return tuple(run for run in (self.llm, self.encoder) if run)

    @property
    def awaited(self) -> tuple[str, ...]:
        """The config keys whose places the runs it needs will have filled."""
        return tuple(key for key, run in (("llm.checkpoint", self.llm), ("encoder.checkpoint", self.encoder)) if run)

    def values(self, out: Path) -> Overrides:
        """All (config key, value), with what it reads from the runs it needs in the folder `out`."""
        values = [*self.overrides]
        if self.llm:
            values.append(("llm.checkpoint", str(out / self.llm.name / "llm/huggingface")))
        if self.encoder:
            values.append(("encoder.checkpoint", str(out / self.encoder.name)))
        return tuple(values)

    def flags(self, out: Path, places: Overrides = ()) -> list[str]:
        """The flags of its config; `places` are keys that say where data lie."""
        return [f"--config={self.config}", *(as_flag(key, value) for key, value in [*self.values(out), *places])]

    def arguments(self, out: Path, places: Overrides = ()) -> list[str]:
        """What follows `python` in its command."""
        workdir = out / self.name
        target = f"--output={workdir / 'results.json'}" if self.program == EFFICIENCY else f"--workdir={workdir}"
        return ["-m", self.program, *self.flags(out, places), target]


def with_needs(runs: Sequence[Run]) -> list[Run]:
    """`runs` and all they need, each once and after what it needs."""

    def ordered() -> Iterator[Run]:
        for run in runs:
            yield from with_needs(run.needs)
            yield run

    return list({run.name: run for run in ordered()}.values())


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of one dataset, task and seed.

    Attributes:
        dataset: of the paper's three.
        setting, scale: how it is run.
        task: `next_item`, `favorite_category` or `review_generation`.
        seed: of all.
        settings: (config key, value) for every run, as the user wants them.
    """

    dataset: str
    setting: Setting
    scale: Scale
    task: str
    seed: int
    settings: Overrides = ()

    def of(self, model: Model) -> Run:
        """The run of a model of the paper."""
        if model == DUAL_ENCODER and self.task == "favorite_category":
            return self._category_predictor()
        return self._encoder(model) if model.alone else self._contextualised(model)

    def _category_predictor(self) -> Run:
        """The rival of the favourite category: a dual encoder that predicts its id from item ids (4.3.2)."""
        overrides = [
            *[("encoder.kind", "dual_encoder"), ("encoder.features", ("item",))],
            *[("encoder.dual_encoder.label", "favorite_category"), ("training.encoder.keep_best", "loss")],
        ]
        return self._run(self._label(DUAL_ENCODER), self.task, "encoder", overrides)

    def _encoder(self, model: Model) -> Run:
        """The encoder of a model, pretrained on the next item, whatever the task."""
        overrides: list[tuple[str, object]] = [("encoder.kind", model.encoder), *self._lengths(model)]
        overrides += [("encoder.features", model.features)] if model.features else []
        alone = dataclasses.replace(AUTOREGRESSIVE, encoder=model.encoder, features=model.features, length=model.length)
        return self._run(self._label(alone), "next_item", "encoder", overrides)

    def _contextualised(self, model: Model) -> Run:
        """A language model with its encoder, or with a text history."""
        overrides = self._lengths(model)
        history = self._history(model)
        if events := {"": 0, "short": min(SHORT, history), "all": history}[model.text]:
            overrides += [("data.text_history", events), ("prompt.max_inputs", self._prompt(events))]
            if 0 < self.setting.long_text < events:
                overrides.append(("training.user_llm.accumulate", 4))
        if model.encoder is None:
            overrides.append(("integration.kind", "none"))
        else:
            overrides += [("encoder.kind", model.encoder), ("integration.kind", model.integration)]
            overrides += [] if model.pretrained else [("encoder.init", "random")]
            overrides += [("integration.perceiver.enabled", True)] if model.perceiver else []
        overrides.append(("strategy", model.strategy))
        encoder = self._encoder(model) if model.encoder and model.pretrained else None
        llm = None if self._borrows_llm else self.llm()
        return self._run(self._label(model), self.task, "user_llm", overrides, encoder, llm)

    def llm(self) -> Run:
        """The language model that all of the task's runs start from, where none is named."""
        return self._run("llm", self.task, "llm", [])

    @property
    def _borrows_llm(self) -> bool:
        return any(key == "llm.checkpoint" for key, _ in self.settings)

    def _label(self, model: Model) -> str:
        return f"{model.label}.n{self._history(model)}"

    def _lengths(self, model: Model) -> list[tuple[str, object]]:
        return [("data.history_length", self._history(model))] if model.length else []

    def _history(self, model: Model) -> int:
        return self.scale.lengths[model.length] if model.length else self.setting.history

    def _prompt(self, events: int) -> int:
        query = 128 if self.task == "review_generation" else 32  # the paper's; a review's has title, category, rating
        return query + self.setting.tokens_per_event * events

    def _run(self, label: str, task: str, stage: str, overrides, encoder: Run | None = None, llm: Run | None = None):
        common: list[tuple[str, object]] = [("seed", self.seed), ("stages", (stage,))]
        if self.setting.dataset:
            common.append(("data.dataset", self.setting.dataset))
        if stage != "encoder" and not self._borrows_llm:
            common.append(("llm.max_length", self.setting.max_length))
        return Run(
            label=f"{self.dataset}.{task}.{label}.seed{self.seed}",
            dataset=self.dataset,
            config=f"{self.setting.config}:{task}",
            overrides=(*common, *overrides, *self._wished(stage)),
            encoder=encoder,
            llm=llm,
        )

    def _wished(self, stage: str) -> Overrides:
        """The user's settings; an encoder's run has no use for a language model's."""
        return tuple((key, value) for key, value in self.settings if stage != "encoder" or not key.startswith("llm."))

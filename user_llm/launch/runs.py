"""A run of a sweep, made from a model of the paper (`models.py`), a setting (`scales.py`) and a seed."""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from user_llm.keys import as_flag
from user_llm.launch.models import DUAL_ENCODER, USER_LLM, Model
from user_llm.launch.recipe import DERIVED, UNTRAINED, learnable, shortened, strided
from user_llm.launch.resolve import Overrides, config_hash, resolve
from user_llm.launch.scales import FAVORITE, NEXT, REVIEW, Scale, Setting

MAIN, EFFICIENCY = "user_llm.main", "user_llm.efficiency"
SHORT = 10  # latest events as text, of TP10 and AR50TP10
COLD_SHARE = 0.05  # of the items, of models that are asked about new ones


@dataclasses.dataclass(frozen=True)
class Run:
    """One start of a program; what it leaves is in the folder `<out>/<name>`.

    Attributes:
        label: what it is, readable.
        dataset: of `scales.DATASETS`; "" = none.
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
        dataset: of `scales.DATASETS`.
        setting, scale: how it is run.
        task: of `scales.TASKS`.
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
        if model == DUAL_ENCODER and self.task == FAVORITE:
            return self._category_predictor()
        return self._encoder(model) if model.alone else self._contextualised(model)

    def _category_predictor(self) -> Run:
        """The rival of the favourite category: a dual encoder that predicts its id from item ids (4.3.2)."""
        overrides = [
            *[("encoder.kind", "dual_encoder"), ("encoder.features", ("item",))],
            *[("encoder.dual_encoder.label", FAVORITE), ("training.encoder.keep_best", "loss")],
            *self._pretraining(FAVORITE, DUAL_ENCODER),
        ]
        return self._run(self._label(DUAL_ENCODER), FAVORITE, ("encoder",), overrides)

    def _encoder(self, model: Model) -> Run:
        """The encoder of a model, pretrained on the next item, whatever the task."""
        features = () if model.features == tuple(self._config(NEXT).encoder.features) else model.features
        alone = Model(model.encoder, alone=True, features=features, length=model.length)
        overrides: list[tuple[str, object]] = [("encoder.kind", model.encoder), *self._lengths(model)]
        overrides += [("encoder.features", features)] if features else []
        return self._run(self._label(alone), NEXT, ("encoder",), [*overrides, *self._pretraining(NEXT, alone)])

    def _pretraining(self, task: str, alone: Model) -> Overrides:
        config = self._config(task)
        return [*learnable(config, alone), *strided(config, str(alone.encoder), self._history(alone))]

    def _contextualised(self, model: Model) -> Run:
        """A language model with its encoder, or with a text history."""
        config, history = self._config(self.task), self._history(model)
        overrides = [*self._lengths(model)]
        if events := {"": 0, "short": min(SHORT, history), "all": history}[model.text]:
            overrides += [("data.text_history", events), ("prompt.max_inputs", self._prompt(events))]
            if model.trained and 0 < self.setting.long_text < events:
                overrides.append(("training.user_llm.accumulate", 4))
            part = max((part for least, part in self.setting.fewer if events >= least), default=1)
            overrides += shortened(config, part) if model.trained and part > 1 else []
        if model.encoder is None:
            overrides.append(("integration.kind", "none"))
        else:
            overrides += [("encoder.kind", model.encoder), ("integration.kind", model.integration)]
            overrides += [] if model.pretrained else [("encoder.init", "random")]
            overrides += [("integration.perceiver.enabled", True)] if model.perceiver else []
        overrides += [("strategy", model.strategy), *learnable(config, model, events)]
        overrides += [] if model.trained else UNTRAINED
        if self._is_fused(model):
            overrides.append(("evaluation.answers", "fused"))
        if model.cold:  # another run's encoder and language model know these items
            stages = ("encoder", "user_llm") if self._borrows_llm else ("llm", "encoder", "user_llm")
            overrides.append(("evaluation.cold_share", COLD_SHARE))
            return self._run(self._label(model), self.task, stages, overrides, model=model)
        encoder = self._encoder(model) if model.encoder and model.pretrained else None
        llm = None if self._borrows_llm else self.llm()
        return self._run(self._label(model), self.task, ("user_llm",), overrides, encoder, llm, model)

    def _is_fused(self, model: Model) -> bool:
        usual = (
            dataclasses.replace(model, length=0, cold=False) == USER_LLM
            and self._history(model) == self.setting.history
        )
        wished = any(key == "evaluation.answers" for key, _ in self.settings)
        return self.scale.beyond and self.task == NEXT and usual and not wished

    def llm(self) -> Run:
        """The language model that all of the task's runs start from, where none is named."""
        return self._run("llm", self.task, ("llm",), [])

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
        query = 128 if self.task == REVIEW else 32  # the paper's; a review's has title, category, rating
        return query + self.setting.tokens_per_event * events

    def _config(self, task: str) -> ConfigDict:
        wished = tuple((key, value) for key, value in self.settings if key in DERIVED)
        return _config_of(f"{self.setting.config}:{task}", wished)

    def _run(
        self,
        label: str,
        task: str,
        stages: tuple[str, ...],
        overrides: Overrides,
        encoder: Run | None = None,
        llm: Run | None = None,
        model: Model | None = None,
    ) -> Run:
        common: list[tuple[str, object]] = [("seed", self.seed), ("stages", stages)]
        if self.setting.dataset:
            common.append(("data.dataset", self.setting.dataset))
        if stages != ("encoder",) and not self._borrows_llm:
            common.append(("llm.max_length", self.setting.max_length))
        return Run(
            label=f"{self.dataset}.{task}.{label}.seed{self.seed}",
            dataset=self.dataset,
            config=f"{self.setting.config}:{task}",
            overrides=(*common, *overrides, *self._wished(stages, model, {key for key, _ in overrides})),
            encoder=encoder,
            llm=llm,
        )

    def _wished(self, stages: tuple[str, ...], model: Model | None, given: Collection[str]) -> Overrides:
        """The user's settings, but for those that the run has no use for, and keys that are `given` their values."""
        useless = ["llm."] if stages == ("encoder",) else []
        if model is None or model.encoder is None:
            useless.append("integration.")
        elif model.integration != "cross_attention":
            useless += ["integration.first_layer", "integration.every"]
        return tuple(
            (key, value)
            for key, value in self.settings
            if not key.startswith(tuple(useless)) and not (key in DERIVED and key in given)
        )


@functools.cache
def _config_of(file: str, settings: Overrides) -> ConfigDict:
    return resolve(file, settings)

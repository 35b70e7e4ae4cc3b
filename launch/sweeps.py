"""What to run, as plain data: a sweep is a list of runs, each some overrides of a config and the runs it builds on."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of `user_llm.main`.

    Attributes:
        name: unique in the sweep; its workdir is the folder of that name.
        overrides: config key → value.
        needs: names of the runs that must be finished before, as this one reads what they leave.
        rows: row of the sweep's table → row of this run's `results.json`. Several runs may give one row, each with
            another seed: the table has their mean.
    """

    name: str
    overrides: Mapping[str, object]
    needs: tuple[str, ...] = ()
    rows: Mapping[str, str] = dataclasses.field(default_factory=dict)


# The encoders, each pretrained once a seed: name → (row of the table, overrides).
_ENCODERS = {
    "dual_encoder": ("DualEnc", {"encoder.kind": "dual_encoder"}),
    "bert4rec": ("BERT4Rec", {"encoder.kind": "bert4rec"}),
    "sasrec": ("SASRec-style", {"encoder.kind": "autoregressive", "encoder.features": ("item",)}),
    "autoregressive": ("AR encoder alone", {"encoder.kind": "autoregressive"}),
}

# Tokens that a prompt with so many written-out events may take; movie titles have about ten with their separator.
_PROMPTS = {10: 128, 50: 544}
_MAX_LENGTH = 1024  # what the LLM of the sweep can read: the longest prompt and its answer, or a soft prompt and them

_INTEGRATIONS = {"cross_attention": "User-LLM cross-attention", "soft_prompt": "User-LLM soft prompt"}


@dataclasses.dataclass(frozen=True)
class _Seed:
    """The runs of one seed in the folder `out`. They share a small language model and an encoder of each kind."""

    out: Path
    seed: int

    def named(self, name: str) -> str:
        return f"{name}_seed{self.seed}"

    def llm(self, rows: Sequence[str]) -> Run:
        """The language model; its results have the rows that need no training."""
        overrides = {"seed": self.seed, "stages": ("llm",), "llm.max_length": _MAX_LENGTH}
        return Run(self.named("llm"), overrides, rows={row: row for row in rows})

    def encoder(self, name: str, overrides: Mapping[str, object], rows: Mapping[str, str]) -> Run:
        """An encoder, pretrained alone."""
        return Run(self.named(name), {"seed": self.seed, "stages": ("encoder",), **overrides}, rows=rows)

    def user_llm(self, name: str, row: str, kind: str | None = "autoregressive", **overrides: object) -> Run:
        """A contextualised LLM with the pretrained encoder `kind`; None: with none."""
        llm = self.named("llm")
        values = {"seed": self.seed, "stages": ("user_llm",), "llm.checkpoint": str(self.out / llm / "llm/huggingface")}
        needs = [llm]
        if kind is not None:
            values |= {**_ENCODERS[kind][1], "encoder.checkpoint": str(self.out / self.named(kind))}
            needs.append(self.named(kind))
        values |= {key.replace("__", "."): value for key, value in overrides.items()}
        answers = "TextPrompt" if values.get("integration.kind") == "none" else "User-LLM"
        return Run(self.named(name), values, tuple(needs), {row: answers})

    def text_prompt(self, events: int) -> Run:
        """The LLM with a text history and no encoder."""
        name, row = f"text_prompt_{events}", f"TextPrompt {events}"
        return self.user_llm(name, row, kind=None, integration__kind="none", **_text_history(events))


def _text_history(events: int) -> dict[str, object]:
    return {"data__text_history": events, "prompt__max_inputs": _PROMPTS[events]}


def models(out: Path, seeds: Sequence[int]) -> list[Run]:
    """Every model of the paper on one config, next item: baselines, encoders, integrations, strategies, once a seed."""
    return [run for seed in seeds for run in _models(_Seed(out, seed))]


def _models(of: _Seed) -> list[Run]:
    runs = [of.llm(("Popularity", "Popularity in the latest category"))]
    runs += [of.encoder(kind, overrides, {row: "Encoder alone"}) for kind, (row, overrides) in _ENCODERS.items()]
    runs += [of.text_prompt(events) for events in _PROMPTS]
    for kind, row in _INTEGRATIONS.items():
        for strategy in ("full", "lora", "enc", "proj"):
            name = f"{kind}_{strategy}"
            runs.append(of.user_llm(name, f"{row}, {strategy}", integration__kind=kind, strategy=strategy))
    return [
        *runs,
        of.user_llm("ar50_tp10", "AR50TP10", **_text_history(10)),
        of.user_llm("dual_encoder_cross_attention", "DualEnc-XAtten", kind="dual_encoder"),
        of.user_llm("perceiver", "User-LLM cross-attention, Perceiver", integration__perceiver__enabled=True),
        of.user_llm(
            "random_encoder",
            "User-LLM cross-attention, random encoder",
            kind=None,
            encoder__kind="autoregressive",
            encoder__init="random",
        ),
    ]


def favorite_category(out: Path, seeds: Sequence[int]) -> list[Run]:
    """The favourite category (paper 4.3.2): the majority, a dual encoder that predicts its id, TextPrompt, User-LLM."""
    return [run for seed in seeds for run in _favorite_category(_Seed(out, seed))]


def _favorite_category(of: _Seed) -> list[Run]:
    dual_encoder = {
        "encoder.kind": "dual_encoder",
        "encoder.features": ("item",),
        "encoder.dual_encoder.label": "favorite_category",
        "training.encoder.keep_best": "loss",
    }
    return [
        of.llm(("Majority category", "Category of the latest event")),
        of.encoder("dual_encoder", dual_encoder, {"DualEnc": "Dual encoder"}),
        of.encoder("autoregressive", _ENCODERS["autoregressive"][1], {}),
        of.text_prompt(50),
        of.user_llm("user_llm_full", "User-LLM, full"),
        of.user_llm("user_llm_enc", "User-LLM, enc", strategy="enc"),
    ]


SWEEPS: Mapping[str, Callable[[Path, Sequence[int]], list[Run]]] = {
    "models": models,
    "favorite_category": favorite_category,
}
"""Name → (folder of the sweep, seeds) → its runs, each after those it needs."""

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


def models(out: Path, seeds: Sequence[int]) -> list[Run]:
    """Every model of the paper on one config: baselines, encoders, integrations and strategies, once a seed.

    Within a seed they share one small language model and one pretrained encoder of each kind.
    """
    return [run for seed in seeds for run in _models(out, seed)]


def _models(out: Path, seed: int) -> list[Run]:
    def named(name: str) -> str:
        return f"{name}_seed{seed}"

    def encoder(kind: str) -> Run:
        row, overrides = _ENCODERS[kind]
        return Run(named(kind), {"seed": seed, "stages": ("encoder",), **overrides}, rows={row: "Encoder alone"})

    def user_llm(name: str, row: str, kind: str | None = "autoregressive", **overrides: object) -> Run:
        """A contextualised LLM with a pretrained encoder of `kind`; None: with none."""
        values = {"seed": seed, "stages": ("user_llm",), "llm.checkpoint": str(out / named("llm") / "llm/huggingface")}
        needs = [named("llm")]
        if kind is not None:
            values |= {**_ENCODERS[kind][1], "encoder.checkpoint": str(out / named(kind))}
            needs.append(named(kind))
        values |= {key.replace("__", "."): value for key, value in overrides.items()}
        answers = "TextPrompt" if values.get("integration.kind") == "none" else "User-LLM"
        return Run(named(name), values, tuple(needs), {row: answers})

    def text_history(events: int) -> dict[str, object]:
        return {"data__text_history": events, "prompt__max_inputs": _PROMPTS[events]}

    llm = {"seed": seed, "stages": ("llm",), "llm.max_length": _MAX_LENGTH}
    runs = [Run(named("llm"), llm, rows={name: name for name in ("Popularity", "Popularity in the latest category")})]
    runs += [encoder(kind) for kind in _ENCODERS]
    for events in _PROMPTS:
        name, row = f"text_prompt_{events}", f"TextPrompt {events}"
        runs.append(user_llm(name, row, kind=None, integration__kind="none", **text_history(events)))
    for kind, row in _INTEGRATIONS.items():
        for strategy in ("full", "lora", "enc", "proj"):
            name = f"{kind}_{strategy}"
            runs.append(user_llm(name, f"{row}, {strategy}", integration__kind=kind, strategy=strategy))
    return [
        *runs,
        user_llm("ar50_tp10", "AR50TP10", **text_history(10)),
        user_llm("dual_encoder_cross_attention", "DualEnc-XAtten", kind="dual_encoder"),
        user_llm("perceiver", "User-LLM cross-attention, Perceiver", integration__perceiver__enabled=True),
        user_llm(
            "random_encoder",
            "User-LLM cross-attention, random encoder",
            kind=None,
            encoder__kind="autoregressive",
            encoder__init="random",
        ),
    ]


SWEEPS: Mapping[str, Callable[[Path, Sequence[int]], list[Run]]] = {"models": models}
"""Name → (folder of the sweep, seeds) → its runs, each after those it needs."""

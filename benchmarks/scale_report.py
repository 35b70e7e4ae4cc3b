"""The tables of part scale: rates, predictions beside what was measured, and what a billion users take."""

from collections.abc import Mapping
from typing import Any

from benchmarks.catalogue_steps import markdown
from benchmarks.markdown import table

_RATES = ("what", "by the rates")
_STEPS = ("what", "hosts", "hours", "GB", "of", "by")


def sections(found: Mapping[str, Any]) -> list[str]:
    """Markdown of what `measure_scale` returns."""
    within = sum(one["within"] for one in found["held"])
    fitted = ", ".join(f"{users:,}" for users in found["fitted"])
    tested = dict.fromkeys(one["users"] for one in found["held"])
    lines: dict[tuple[str, str], list[str]] = {}
    for one in found["held"]:
        lines.setdefault((one["line"], one["unit"]), []).append(_held(one))
    steps = f"**Scale: a training step of the encoder by the catalogue's size**\n\n{markdown(found['catalogues'])}"
    return [
        f"**Scale, rates**, of runs of {fitted} users.",
        table(_RATES, [[line, _rates(names, found["rates"])] for line, names in found["names"].items()]),
        f"**Scale: predicted, measured, ratio**: {within} of {len(found['held'])} within 20 %, the others bold.",
        table(
            ("what", "unit", *(f"{users:,} users" for users in tested)),
            [[line, "MB" if unit == "bytes" else unit, *cells] for (line, unit), cells in lines.items()],
        ),
        "**10⁹ users, 10¹¹ events**: computed by rates of all these runs, not run.",
        table(_STEPS, [_step(step) for step in found["billion"]]),
        *([steps] if found["catalogues"] else []),
    ]


def _rates(names: list[str], rates: Mapping[str, float]) -> str:
    return " + ".join(f"`{name}` {rates[name]:.3g}" for name in names)


def _held(one: Mapping[str, Any]) -> str:
    of_bytes = one["unit"] == "bytes"
    values = [f"{one[name] / 1e6:,.1f}" if of_bytes else f"{one[name]:,.2f}" for name in ("predicted", "measured")]
    ratio = f"{one['ratio']:.2f}" if one["within"] else f"**{one['ratio']:.2f}**"
    return ", ".join([*values, ratio])


def _step(step: Mapping[str, Any]) -> list[str]:
    hours = f"{step['hours']:,.2f}" if step["hours"] >= 0.005 else "< 0.01" if step["hours"] else ""
    return [step["name"], f"{step['hosts']}", hours, f"{step['bytes'] / 1e9:,.0f}", step["of_what"], step["by"]]

"""How long the runs of a sweep take, by steps and answers that were measured."""

import fnmatch
from collections.abc import Sequence

from user_llm.launch.board import duration
from user_llm.launch.runs import Run

# (scale, pattern of a run's label, seconds of one core of an AMD EPYC); the first that matches counts. Kinds of runs of
# which no step was measured have the figure of the nearest that was. Measured with 1,200 steps of 128 windows with four
# targets, before `ml_1m` had more steps of fewer windows.
SECONDS = (
    ("workstation", "movielens.next_item.llm.*", 400),
    ("workstation", "movielens.next_item.*.alone.*", 1200),
    ("workstation", "movielens.next_item.text_prompt.short.*", 1500),
    ("workstation", "movielens.next_item.*.text_short.*", 1900),
    ("workstation", "movielens.next_item.text_prompt.*.n50.*", 1700),
    ("workstation", "movielens.next_item.text_prompt.*.n100.*", 1800),
    ("workstation", "movielens.next_item.text_prompt.*.n200.*", 2400),
    ("workstation", "movielens.next_item.autoregressive.cross_attention.full.n50.*", 1400),  # fused answers, too
    ("workstation", "movielens.next_item.*", 950),
    ("workstation", "movielens.favorite_category.llm.*", 400),
    ("workstation", "movielens.favorite_category.*.alone.*", 1200),
    ("workstation", "movielens.favorite_category.text_prompt.*", 900),
    ("workstation", "movielens.favorite_category.*", 350),
    ("workstation", "*.next_item.*.n5.*", 60),
    ("workstation", "*.next_item.*.n20.*", 150),
    ("workstation", "amazon_reviews.next_item.*.alone.*", 1200),
    ("workstation", "amazon_reviews.*.llm.*", 900),
    ("workstation", "amazon_reviews.next_item.autoregressive.cross_attention.full.*", 2000),
    ("workstation", "amazon_reviews.next_item.*", 1100),
    ("workstation", "amazon_reviews.favorite_category.*.alone.*", 1200),
    ("workstation", "amazon_reviews.favorite_category.*", 400),
    ("workstation", "gift_cards.*", 120),
    ("workstation", "*.review_generation.*", 270),
)


def forecast(scale: str, runs: Sequence[Run], jobs: int) -> str:
    """One line: how many runs there are, and the hours of those whose kind was measured, with `jobs` cores.

    The hours are those of the scale's own steps, whatever a user has set.
    """
    seconds = [line[-1] for run in runs if (line := line_of(scale, run))]
    text = f"Forecast: {len(runs)} runs"
    if not seconds:
        return f"{text}, none of a kind that was measured"
    unknown = len(runs) - len(seconds)
    text += f", about {duration(sum(seconds) / jobs)} at --jobs={jobs} with a core of an AMD EPYC for each"
    text += ", at the scale's own steps"
    return f"{text} (without {unknown} of kinds that were not measured)" if unknown else text


def line_of(scale: str, run: Run) -> tuple[str, str, int] | None:
    """The line of `SECONDS` that counts for a run; None where its kind was not measured."""
    return next((line for line in SECONDS if line[0] == scale and fnmatch.fnmatchcase(run.label, line[1])), None)

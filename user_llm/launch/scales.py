"""Two sizes of every experiment: `paper` (its datasets, appendix C) and `laptop` (small data and steps, two cores)."""

import dataclasses
from collections.abc import Mapping

DATASETS = ("movielens", "google_local", "amazon_reviews")
TASKS = ("next_item", "favorite_category", "review_generation")


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a scale runs one of the paper's datasets.

    Attributes:
        title: the data, in words.
        config: file of the experiment; a task follows its colon.
        history: N, events of a history (the paper's 50).
        dataset: in place of the config's own.
        tokens_per_event: room in a prompt for each event that is written out.
        max_length: tokens that the language model must be able to read, where we train it.
        long_text: written-out events above which a training batch is read in four parts: a prompt of 100 events took
            14 GB otherwise. 0: never.
    """

    title: str
    config: str
    history: int
    dataset: str = ""
    tokens_per_event: int = 13
    max_length: int = 4096
    long_text: int = 0


@dataclasses.dataclass(frozen=True)
class Scale:
    """A size of the experiments.

    Attributes:
        settings: dataset → how it is run.
        lengths: the paper's 50, 100 and 200 events of Figure 3 → ours.
        efficiency: config of Table 3's measurement.
    """

    settings: Mapping[str, Setting]
    lengths: Mapping[int, int]
    efficiency: str


SCALES = {
    "paper": Scale(
        settings={
            "movielens": Setting("MovieLens-20M", "ml20m", 50),
            "google_local": Setting("Google Local, New York", "google_local", 50),
            "amazon_reviews": Setting("Amazon reviews, Movies & TV", "amazon", 50),
        },
        lengths={50: 50, 100: 100, 200: 200},
        efficiency="ml20m",
    ),
    "laptop": Scale(
        settings={
            "movielens": Setting(
                "MovieLens latest-small (real)",
                "ml_latest_small_models",
                50,
                tokens_per_event=11,
                max_length=1280,
                long_text=50,
            ),
            "google_local": Setting(
                "Google Local, simulated", "simulated", 20, "google_local/simulated", max_length=512
            ),
            "amazon_reviews": Setting(
                "Amazon reviews, simulated", "simulated", 20, "amazon_reviews/simulated", max_length=512
            ),
        },
        lengths={50: 25, 100: 50, 200: 100},  # half of the paper's: most users of latest-small have fewer than 200
        efficiency="efficiency",
    ),
}

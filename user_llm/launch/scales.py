"""The sizes of every experiment: the paper's own, small ones for a laptop's or a workstation's two cores."""

import dataclasses
from collections.abc import Mapping

DATASETS = ("movielens", "google_local", "amazon_reviews", "gift_cards")
STANDS_FOR = {"gift_cards": "amazon_reviews"}
"""A dataset that the paper has not → the paper's that it is compared with, beside what else stands for that one."""
BUILDS = {
    "custom/beauty": (
        "user-llm build custom/beauty --files interactions.csv --columns user=user item=item timestamp=timestamp "
        "--items items.csv --item_columns item=item title=title category=category"
    )
}
"""A dataset that no run builds by itself → the command that does."""
TASKS = NEXT, FAVORITE, REVIEW = ("next_item", "favorite_category", "review_generation")


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a scale runs one task of one of the paper's datasets.

    Attributes:
        title: the data, in words.
        config: file of the experiment; a task follows its colon.
        history: N, events of a history (the paper's 50).
        dataset: in place of the config's own.
        tokens_per_event: room in a prompt for each event that is written out.
        max_length: tokens that the language model must be able to read, where we train it.
        long_text: written-out events above which a training batch is read in four parts: a prompt of 100 events took
            14 GB otherwise. 0: never.
        fewer: (written-out events, k): from so many on, a text prompt is trained for a k-th of the steps.
    """

    title: str
    config: str
    history: int
    dataset: str = ""
    tokens_per_event: int = 13
    max_length: int = 4096
    long_text: int = 0
    fewer: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Scale:
    """A size of the experiments.

    Attributes:
        settings: dataset → task → how it is run; what is not there is not run at this scale.
        lengths: the paper's 50, 100 and 200 events of Figure 3 → ours.
        efficiency: config of Table 3's measurement.
        tables: those it has; (): all of the paper's, and the baselines.
        beyond: whether it asks what the paper did not: User-LLM together with its encoder, in the task of the next
            item, and items that nothing has learnt of (table `cold`).
    """

    settings: Mapping[str, Mapping[str, Setting]]
    lengths: Mapping[int, int]
    efficiency: str
    tables: tuple[str, ...] = ()
    beyond: bool = False


def _every_task(setting: Setting) -> Mapping[str, Setting]:
    return dict.fromkeys(TASKS, setting)


_MOVIELENS_1M = Setting(
    "MovieLens-1M (real)",
    "ml_1m_models",
    50,
    tokens_per_event=12,
    max_length=2560,
    long_text=50,
    fewer=((50, 6), (100, 16), (200, 32)),
)
_BEAUTY = Setting(
    "Amazon Beauty of 2014 (real)",
    "amazon_beauty_models",
    50,
    tokens_per_event=30,
    max_length=1664,
    long_text=10,
    fewer=((50, 4),),
)
_SIMULATED_GOOGLE = Setting("Google Local, simulated", "simulated", 20, "google_local/simulated", max_length=512)
_SIMULATED_AMAZON = Setting("Amazon reviews, simulated", "simulated", 20, "amazon_reviews/simulated", max_length=512)

SCALES = {
    "paper": Scale(
        settings={
            "movielens": _every_task(Setting("MovieLens-20M", "ml20m", 50)),
            "google_local": _every_task(Setting("Google Local, New York", "google_local", 50)),
            "amazon_reviews": _every_task(Setting("Amazon reviews, Movies & TV", "amazon", 50)),
        },
        lengths={50: 50, 100: 100, 200: 200},
        efficiency="ml20m",
    ),
    "workstation": Scale(
        settings={
            "movielens": {NEXT: _MOVIELENS_1M, FAVORITE: _MOVIELENS_1M},
            "google_local": {REVIEW: _SIMULATED_GOOGLE},
            "amazon_reviews": {NEXT: _BEAUTY, FAVORITE: _BEAUTY, REVIEW: _SIMULATED_AMAZON},
            "gift_cards": {
                REVIEW: Setting("Amazon gift cards of 2018 (real)", "amazon_gift_cards", 5, max_length=512),
            },
        },
        lengths={50: 50, 100: 100, 200: 200},
        efficiency="efficiency",
        beyond=True,
    ),
    "pretrained": Scale(
        settings={
            "movielens": {NEXT: dataclasses.replace(_MOVIELENS_1M, config="ml_1m_pretrained", tokens_per_event=13)},
        },
        lengths={50: 50, 100: 100, 200: 200},
        efficiency="efficiency",
        tables=("pretrained",),
    ),
    "laptop": Scale(
        settings={
            "movielens": _every_task(
                Setting(
                    "MovieLens latest-small (real)",
                    "ml_latest_small_models",
                    50,
                    tokens_per_event=11,
                    max_length=1280,
                    long_text=50,
                )
            ),
            "google_local": _every_task(_SIMULATED_GOOGLE),
            "amazon_reviews": _every_task(_SIMULATED_AMAZON),
        },
        lengths={50: 25, 100: 50, 200: 100},  # half of the paper's: most users of latest-small have fewer than 200
        efficiency="efficiency",
    ),
}

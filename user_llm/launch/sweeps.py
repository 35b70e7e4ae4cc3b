"""What to run, as plain data: the paper's tables (1-8, 10-14, Figure 3) and two of our own, each a list of cells.

A cell says where it stands (table, dataset, task, row, column), what is read there (a metric of a row of a run's
results) and the run of each seed. Tables that share a run name the same one.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from user_llm.launch.models import (
    AUTOREGRESSIVE,
    BERT4REC,
    COLD,
    DUAL_ENCODER,
    DUAL_ENCODER_LLM,
    DUAL_ENCODER_LLM_WITH_SHORT_TEXT,
    PERCEIVER,
    RANDOM_ENCODER,
    SASREC,
    SHORT_TEXT_PROMPT,
    SOFT_PROMPT,
    TEXT_PROMPT,
    USER_LLM,
    WITH_SHORT_TEXT,
    ZERO_SHOT,
    Model,
)
from user_llm.launch.runs import EFFICIENCY, Run, Runs
from user_llm.launch.scales import DATASETS, FAVORITE, NEXT, REVIEW, SCALES, STANDS_FOR, Scale

RECALLS = ("recall@1", "recall@5", "recall@10")
ROUGE = "rougeLsum"

STRATEGIES = {"Full": "full", "LoRA": "lora", "Enc": "enc", "Proj": "proj"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One figure of a table.

    Attributes:
        table, dataset, task, row, column, metric: where it stands, as in `paper_figures.csv`.
        runs: one a seed.
        source: what is read: a row of the runs' results, or an approach of the efficiency measurement.
        optional: whether it is shown only where the runs' results have that row.
        protocol: which of the results' tables is read, where not the first one.
    """

    table: str
    dataset: str
    task: str
    row: str
    column: str
    metric: str
    runs: tuple[Run, ...]
    source: str
    optional: bool = False
    protocol: str = ""


@dataclasses.dataclass(frozen=True)
class Block:
    """Rows of a table that read one task in the same columns: one for each dataset (the paper's names) and metric."""

    task: str
    metrics: tuple[str, ...]
    columns: Mapping[str, Model]
    datasets: tuple[str, ...] = DATASETS
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)  # column → row of results, if not its model's
    optional: tuple[str, ...] = ()  # columns that are shown where the results have them
    protocols: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"": ""})  # row → table of the results


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper, or one of our own.

    Attributes:
        title: what it compares.
        blocks: its rows.
        paper: the table of `paper_figures.csv` with the same cells; "" where the paper has none.
    """

    title: str
    blocks: tuple[Block, ...]
    paper: str = ""


def _by_strategy(model: Model, prefix: str = "", suffix: str = "") -> dict[str, Model]:
    return {f"{prefix}{name}{suffix}": dataclasses.replace(model, strategy=value) for name, value in STRATEGIES.items()}


def _lengths() -> dict[str, Model]:
    columns = {}
    for head, text, user in (("Unfrozen", "full", "full"), ("Frozen", "lora", "enc")):
        for length in (50, 100, 200):
            columns[f"{head} Len{length} TP"] = dataclasses.replace(TEXT_PROMPT, strategy=text, length=length)
            columns[f"{head} Len{length} USER-LLM"] = dataclasses.replace(USER_LLM, strategy=user, length=length)
    return columns


def _each_task(columns: Mapping[str, Model], next_item: Sequence[str] = RECALLS[:1]) -> tuple[Block, ...]:
    products = ("google_local", "amazon_reviews")
    return (
        Block(NEXT, tuple(next_item), columns),
        Block(FAVORITE, RECALLS if len(next_item) > 1 else RECALLS[:1], columns),
        Block(REVIEW, (ROUGE,), columns, products),
    )


_FUSIONS = {
    "cross-attention PT": USER_LLM,
    "cross-attention RD": RANDOM_ENCODER,
    "soft-prompt": SOFT_PROMPT,
    "DualEnc-Xatten": DUAL_ENCODER_LLM,
}
_BOTH = {  # paper table 13: each strategy with a pretrained and a random encoder
    name: model
    for strategy in STRATEGIES
    for name, model in {
        **_by_strategy(USER_LLM, suffix=" PT"),
        **_by_strategy(RANDOM_ENCODER, suffix=" RD"),
    }.items()
    if name.split()[0] == strategy
}
_SHORT_AND_LONG = {
    "AR50": USER_LLM,
    "AR50TP10": WITH_SHORT_TEXT,
    "DE50": DUAL_ENCODER_LLM,
    "DE50TP10": DUAL_ENCODER_LLM_WITH_SHORT_TEXT,
}
_PERCEIVERS = {
    "USER-LLM Full": USER_LLM,
    "USER-LLM Enc": dataclasses.replace(USER_LLM, strategy="enc"),
    "+Perceiver Full": PERCEIVER,
    "+Perceiver Enc": dataclasses.replace(PERCEIVER, strategy="enc"),
}
_TEXT_AND_EMBEDDINGS = {"TP10": SHORT_TEXT_PROMPT, "TP50": TEXT_PROMPT, "AR50": USER_LLM, "AR50TP10": WITH_SHORT_TEXT}
_RIVALS = {"DualEnc": DUAL_ENCODER, "TP": TEXT_PROMPT, "USER-LLM": USER_LLM}
_BASELINES = {
    "Popularity": USER_LLM,
    "Popularity in category": USER_LLM,
    "Followers": USER_LLM,
    "Item-kNN": USER_LLM,
    "SASRec": SASREC,
    "AR encoder alone": AUTOREGRESSIVE,
    "USER-LLM without user": USER_LLM,
    "USER-LLM shuffled": USER_LLM,
    "USER-LLM": USER_LLM,
    **dict.fromkeys(("USER-LLM re-ranking", "USER-LLM fused", "Two encoders"), USER_LLM),
}
_COUNTED = {"Followers": "Followers of the latest items", "Item-kNN": "Item-kNN"}
_FUSED = {
    "USER-LLM re-ranking": "User-LLM among its encoder's first 100",
    "USER-LLM fused": "User-LLM fused with its encoder",
    "Two encoders": "Two encoders",
}
_WITHOUT_USER = {
    "USER-LLM without user": "LLM without context",
    "USER-LLM shuffled": "User-LLM, shuffled contexts",
}

_PRETRAINED = {
    "Encoder alone": AUTOREGRESSIVE,
    "TP zero-shot": ZERO_SHOT,
    "TP LoRA": dataclasses.replace(TEXT_PROMPT, strategy="lora"),
    "USER-LLM Enc": dataclasses.replace(USER_LLM, strategy="enc"),
    "USER-LLM LoRA": dataclasses.replace(USER_LLM, strategy="lora"),
}

_COLD = {
    "AR encoder alone": "Encoder alone",
    "USER-LLM without user": "LLM without context",
    "USER-LLM": "User-LLM",
    "USER-LLM fused": "User-LLM fused with its encoder",
}
_COLD_PROTOCOLS = {
    "among all": "events of cold items, among all items",
    "among the cold": "events of cold items, among cold items",
}

_BY_LENGTH = (Block(NEXT, RECALLS, _lengths(), ("movielens",)),)

TABLES: Mapping[str, Table] = {
    "1": Table("Datasets: training and test examples", (), "1"),
    "2": Table(
        "Next item: User-LLM against encoders without a language model",
        (Block(NEXT, RECALLS, {"DualEnc": DUAL_ENCODER, "Bert4Rec": BERT4REC, "USER-LLM": USER_LLM}),),
        "2",
    ),
    "3": Table("Tokens that the language model reads, and FLOPs against a text prompt", (), "3"),
    "4": Table(
        "Favourite category and reviews: User-LLM against its rivals",
        (
            Block(FAVORITE, RECALLS[:1], _RIVALS),
            Block(
                REVIEW,
                (ROUGE,),
                {column: model for column, model in _RIVALS.items() if column != "DualEnc"},
                ("google_local", "amazon_reviews"),
            ),
        ),
        "4",
    ),
    "5": Table("Training strategies", _each_task(_by_strategy(USER_LLM)), "5"),
    "6": Table(
        "User-LLM with and without a Perceiver",
        (
            Block(NEXT, RECALLS[:1], _PERCEIVERS, ("movielens",)),
            Block(FAVORITE, RECALLS[:1], _PERCEIVERS, ("movielens",)),
        ),
        "6",
    ),
    "7": Table(
        "Short-term context as text, long-term as embeddings", (Block(NEXT, RECALLS, _TEXT_AND_EMBEDDINGS),), "7"
    ),
    "8": Table("Integrations, encoders and the benefit of pretraining", _each_task(_FUSIONS), "8"),
    "10": Table(
        "Next item on products and places: User-LLM against a text prompt",
        (Block(NEXT, RECALLS, {"TP": TEXT_PROMPT, "USER-LLM": USER_LLM}, ("google_local", "amazon_reviews")),),
        "10",
    ),
    "11": Table("Next item with longer histories, language model trained or frozen", _BY_LENGTH, "11"),
    "fig3": Table("The next item with longer histories, drawn", _BY_LENGTH, "11"),
    "12": Table("Short- and long-term context with either encoder", (Block(NEXT, RECALLS, _SHORT_AND_LONG),), "12"),
    "13": Table(
        "Training strategies with a pretrained and a random encoder",
        _each_task({**_BOTH, "DualEnc Full PT": DUAL_ENCODER_LLM}, RECALLS),
        "13",
    ),
    "14": Table(
        "Integrations by training strategy",
        _each_task({**_by_strategy(USER_LLM, "cross-attention "), **_by_strategy(SOFT_PROMPT, "soft-prompt ")}),
        "14",
    ),
    "baselines": Table(
        "Not in the paper: what needs no language model, and User-LLM without its user",
        (
            Block(
                NEXT,
                RECALLS,
                _BASELINES,
                sources={
                    "Popularity": "Popularity",
                    "Popularity in category": "Popularity in the latest category",
                    **_COUNTED,
                    **_WITHOUT_USER,
                    **_FUSED,
                },
                optional=(*_COUNTED, *_FUSED),
            ),
            Block(
                FAVORITE,
                RECALLS[:1],
                dict.fromkeys(("Majority", "Latest event", *_WITHOUT_USER, "USER-LLM"), USER_LLM),
                sources={
                    "Majority": "Majority category",
                    "Latest event": "Category of the latest event",
                    **_WITHOUT_USER,
                },
            ),
            Block(
                REVIEW,
                (ROUGE,),
                dict.fromkeys(("Most frequent", "Latest review", *_WITHOUT_USER, "USER-LLM"), USER_LLM),
                ("google_local", "amazon_reviews"),
                {
                    "Most frequent": "Most frequent review of the rating",
                    "Latest review": "User's latest review",
                    **_WITHOUT_USER,
                },
            ),
        ),
    ),
    "cold": Table(
        "Not in the paper: items that nothing has learnt of",
        (
            Block(
                NEXT,
                RECALLS[-1:],
                dict.fromkeys(_COLD, COLD),
                sources=_COLD,
                optional=("USER-LLM fused",),
                protocols=_COLD_PROTOCOLS,
            ),
        ),
    ),
    "pretrained": Table(
        "Not in the paper: a pretrained language model, frozen and with LoRA",
        (Block(NEXT, RECALLS, _PRETRAINED, ("movielens",)),),
    ),
}
"""Name → table, as they are shown; `fig3` is Table 11 drawn."""

_MOST_INFORMATIVE = ("2", "5", "8", "7", "fig3")


def tables_of(scale: str) -> tuple[str, ...]:
    """The tables that a scale has."""
    size = SCALES[scale]
    others = {"pretrained"} if size.beyond else {"pretrained", "cold"}
    return size.tables or tuple(name for name in TABLES if name not in others)


def most_informative_first(tables: Sequence[str]) -> list[str]:
    """Tables in the order in which they are run."""
    return sorted(tables, key=lambda name: [*_MOST_INFORMATIVE, *TABLES].index(name))


TRAINED = frozenset({"Dual encoder", "Encoder alone", "TextPrompt", "User-LLM"})
"""The rows of results that are a trained model's own (`source_of`)."""


def source_of(model: Model, task: str) -> str:
    """The row of a run's results that is the model's."""
    if model.alone:
        return "Dual encoder" if task == FAVORITE else "Encoder alone"
    return "TextPrompt" if model.encoder is None else "User-LLM"


def cells(
    name: str,
    scale: str,
    seeds: Sequence[int],
    datasets: Sequence[str] = DATASETS,
    settings: Sequence[tuple[str, object]] = (),
) -> list[Cell]:
    """The cells of a table.

    Args:
        name: of `TABLES`.
        scale: of `SCALES`, which has the table.
        seeds: of the runs.
        datasets: the rows wanted.
        settings: (config key, value) that every run gets.
    """
    size = SCALES[scale]

    def places(task: str, of: Sequence[str] = DATASETS) -> list[str]:
        """What stands for some of the paper's datasets in a task."""
        there = [name for name, tasks in size.settings.items() if task in tasks and name in datasets]
        return [name for paper in of for name in there if STANDS_FOR.get(name, name) == paper]

    def runs(dataset: str, task: str, model: Model) -> tuple[Run, ...]:
        setting = size.settings[dataset][task]
        return tuple(Runs(dataset, setting, size, task, seed, tuple(settings)).of(model) for seed in seeds)

    if name == "3":
        return list(_lengths_of_prompts(size))
    if name == "1":
        return [
            Cell(name, dataset, "", "", f"{split} examples", "count", runs(dataset, NEXT, AUTOREGRESSIVE)[:1], source)
            for dataset in places(NEXT)
            for split, source in (("Train", "train"), ("Test", "test"))
        ]
    found = [
        Cell(
            table=name,
            dataset=dataset,
            task=block.task,
            row=row,
            column=column,
            metric=metric,
            runs=runs(dataset, block.task, model)[: 1 if protocol else None],  # no interval over seeds is known of it
            source=block.sources.get(column, source_of(model, block.task)),
            optional=column in block.optional,
            protocol=protocol,
        )
        for block in TABLES[name].blocks
        for dataset in places(block.task, block.datasets)
        for row, protocol in block.protocols.items()
        for metric in block.metrics
        for column, model in block.columns.items()
    ]
    return found + (list(_context_vectors(size)) if name == "6" and "movielens" in datasets else [])


def _measured(scale: Scale) -> Run:
    """One measurement of all approaches and lengths, with the paper's tokens of a text prompt."""
    return Run("efficiency", "", scale.efficiency, (("llm.max_length", 4096),), program=EFFICIENCY)


def _lengths_of_prompts(scale: Scale) -> Iterator[Cell]:
    """Table 3."""
    for length in (50, 100, 200):
        for row, metric in (
            ("# Tokens, USER-LLM", "tokens"),
            ("# Tokens, TP", "tokens"),
            ("FLOPs reduction", "ratio"),
        ):
            yield Cell("3", "", "", row, f"Len{length}", metric, (_measured(scale),), str(length))


def _context_vectors(scale: Scale) -> Iterator[Cell]:
    """The last row of Table 6."""
    for column in ("USER-LLM", "+Perceiver"):
        yield Cell("6", "movielens", "", "Tokens", column, "tokens", (_measured(scale),), column)

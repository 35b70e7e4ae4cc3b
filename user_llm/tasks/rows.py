"""What the evaluations of all tasks share: rows of encoder and LLM, and tables for groups of test users."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from user_llm.data.pipeline import Source
from user_llm.encoders import ENCODERS
from user_llm.errors import UserError
from user_llm.evaluation.evaluator import ShuffledContexts
from user_llm.evaluation.metrics import compare, summarise
from user_llm.evaluation.scores import Scores
from user_llm.evaluation.shares import Share
from user_llm.evaluation.users import encoder_scores
from user_llm.models.model import Model
from user_llm.tasks.base import Batch, Study

ENCODER = "Encoder alone"
LLM = "LLM without context"
USER_LLM = "User-LLM"
TEXT_PROMPT = "TextPrompt"
SHUFFLED = "User-LLM, shuffled contexts"
FUSED = "User-LLM fused with its encoder"
RERANKED = "User-LLM among its encoder's first 100"
TWO_ENCODERS = "Two encoders"

Values = dict[str, np.ndarray]  # metric → float [n], one a test user


def encoder_row(study: Study, trained: Mapping[str, Model], *, of: str) -> Scores | None:
    """The trained encoder as a recommender of items, or of categories; None where it is none, or not trained."""
    config, encoder = study.config.encoder, trained.get("encoder")
    if encoder is None or ENCODERS[config.kind].ranks(config) != of:
        return None
    return encoder_scores(encoder)


def item_rankers(study: Study, trained: Mapping[str, Model]) -> dict[str, Scores]:
    """Trained models that rank the catalogue for any windows quickly, for the auditor: the encoder, where it does."""
    scores = encoder_row(study, trained, of="item")
    return {} if scores is None else {ENCODER: scores}


def columns_of(study: Study, source: Source, *names: str) -> Batch:
    """These columns `[n, …]` of all examples, of which each process reads its share."""
    share = Share(len(source), study.config.evaluation.batch_size, study.mesh)
    read = source.gather(share.ids)
    return {name: share.whole(read[name]) for name in names}


class LLMRow(NamedTuple):
    """A row of the trained LLM: what it is asked about, and whether it reads the user's context."""

    name: str
    source: Source
    with_context: bool


def llm_rows(study: Study, test: Source) -> list[LLMRow]:
    """The rows of a trained LLM over the test users."""
    if study.config.integration.kind == "none":
        return [LLMRow(TEXT_PROMPT, test, False)]
    return [
        LLMRow(LLM, test, False),
        LLMRow(USER_LLM, test, True),
        LLMRow(SHUFFLED, ShuffledContexts(test), True),
    ]


def protocols(
    study: Study, task: str, history: np.ndarray, rows: Mapping[str, Values], compared: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """The tables for all test users, and for those with a full history (the paper's protocol).

    Args:
      task: its name, which each table carries.
      history: int `[n, S]`, item ids, 0-padded.
      rows: row → metric → values `[n]`.
      compared: (row, what it should beat): tested on the same users where both are there.

    Raises:
      UserError: nobody is left to test.
    """
    if not len(history):
        data = study.config.data
        raise UserError(f"no test user of {data.dataset} has an answer for config.task={task!r}")
    full = np.asarray((history > 0).all(axis=1))
    groups = {f"histories of {history.shape[1]} events (paper)": full}
    if not full.all():
        shortest = study.windows("test").min_history
        groups = {f"all users with a history of {shortest} or more": np.ones_like(full), **groups}
    return {name: table_of(study, rows, chosen, compared) for name, chosen in groups.items() if chosen.any()}


def table_of(
    study: Study, rows: Mapping[str, Values], chosen: np.ndarray, compared: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """The table of the users whom bool `chosen` [n] takes; the other arguments are those of `protocols`."""
    options = study.config.evaluation.bootstrap_samples, study.config.seed
    rows = {row: {name: column[chosen] for name, column in values.items()} for row, values in rows.items()}
    return {
        "users": int(chosen.sum()),
        "rows": {row: summarise(values, *options) for row, values in rows.items()},
        "comparisons": {
            f"{row} - {other}": compare(rows[row], rows[other], *options)
            for row, other in compared
            if row in rows and other in rows
        },
    }


def dropped_events(study: Study, task: str, batch: Batch) -> dict[str, float]:
    """How many events of a text history a test user's prompt had no room for, on average; nothing without one."""
    if not study.config.data.text_history:
        return {}
    _, _, dropped = study.prompts(task).build(batch["history/item"], batch["label/item"], batch["label/rating"])
    return {"dropped_events": float(dropped.mean())}

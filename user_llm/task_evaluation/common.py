"""What the evaluations of all tasks share: rows of the LLM, and tables for groups of test users."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from user_llm.config import ConfigError
from user_llm.evaluation.evaluator import ShuffledContexts
from user_llm.evaluation.metrics import compare, summarise
from user_llm.experiment import Experiment

LLM = "LLM without context"
USER_LLM = "User-LLM"
TEXT_PROMPT = "TextPrompt"
SHUFFLED = "User-LLM, shuffled contexts"

Answer = TypeVar("Answer")
Values = dict[str, np.ndarray]  # metric → float [n], one a test user


class Evaluation(NamedTuple):
    """What a task's evaluation found.

    Attributes:
      protocols: which test users → `users`, `rows` and `comparisons` (`report.write_results`).
      predictions: one JSON-able mapping a test user.
      facts: more for `results.json`.
    """

    protocols: dict[str, Any]
    predictions: Iterable[Mapping[str, Any]]
    facts: dict[str, Any]


def llm_rows(
    experiment: Experiment, test: Any, answer: Callable[[bool], Callable[[Any, str], Answer]]
) -> dict[str, Answer]:
    """The rows of a trained LLM: name → what `answer(with_context)(source, name)` gives.

    `answer` compiles: it is called once for all rows that read a context, and once for the one that does not.
    """
    if experiment.config.integration.kind == "none":
        return {TEXT_PROMPT: answer(False)(test, TEXT_PROMPT)}
    with_context = answer(True)
    return {
        LLM: answer(False)(test, LLM),
        USER_LLM: with_context(test, USER_LLM),
        SHUFFLED: with_context(ShuffledContexts(test), SHUFFLED),
    }


def protocols(
    experiment: Experiment, history: np.ndarray, rows: Mapping[str, Values], compared: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """The tables for all test users, and for those with a full history (the paper's protocol).

    Args:
      history: int `[n, S]`, item ids, 0-padded.
      rows: row → metric → values `[n]`.
      compared: (row, what it should beat): tested on the same users where both are there.

    Raises:
      ConfigError: nobody is left to test.
    """
    if not len(history):
        data = experiment.config.data
        raise ConfigError(f"no test user of {data.dataset} has an answer for config.task={experiment.config.task!r}")
    full = (history > 0).all(axis=1)
    groups = {f"histories of {history.shape[1]} events (paper)": full}
    if not full.all():
        shortest = experiment.windows("test").min_history
        groups = {f"all users with a history of {shortest} or more": np.ones_like(full), **groups}
    return {name: _table(experiment, rows, chosen, compared) for name, chosen in groups.items() if chosen.any()}


def _table(experiment: Experiment, rows: Mapping[str, Values], chosen: np.ndarray, compared) -> dict[str, Any]:
    options = experiment.config.evaluation.bootstrap_samples, experiment.config.seed
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


def dropped_events(experiment: Experiment, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How many events of a text history a test user's prompt had no room for, on average; nothing without one."""
    if not experiment.config.data.text_history:
        return {}
    _, _, dropped = experiment.prompts.build(batch["history/item"], batch["label/item"], batch["label/rating"])
    return {"dropped_events": float(dropped.mean())}

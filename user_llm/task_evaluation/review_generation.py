"""Task `review_generation`: ROUGE of the reviews that every row writes for the test events (paper 4.3.2)."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from user_llm.data.vocabularies import decode_batch
from user_llm.evaluation.evaluator import Subset, user_llm_texts, write_texts
from user_llm.evaluation.text_metrics import rouge
from user_llm.experiment import Experiment
from user_llm.stages import Model
from user_llm.task_evaluation.common import (
    LLM,
    SHUFFLED,
    TEXT_PROMPT,
    USER_LLM,
    Evaluation,
    Values,
    dropped_events,
    llm_rows,
    protocols,
)

FREQUENT = "Most frequent review of the rating"
LATEST = "User's latest review"

COMPARED = (
    (USER_LLM, FREQUENT),
    (USER_LLM, LATEST),
    (USER_LLM, LLM),
    (USER_LLM, SHUFFLED),
    (TEXT_PROMPT, FREQUENT),
    (TEXT_PROMPT, LATEST),
)

SAMPLES = 8  # of the table of examples, as the paper's table 15
_COUNTED_WINDOWS = 100_000  # of training, evenly spread, that say which reviews are frequent


def evaluate(experiment: Experiment, trained: Mapping[str, Model]) -> Evaluation:
    """Writes a review for every test event that has one, under every row, and compares it with the true one."""
    test, without = _with_review(experiment)
    batch, truth = test.gather(np.arange(len(test))), test.source.references(test.ids)
    frequent = _frequent_reviews(experiment)
    before = test.source.windows.label_positions(test.ids) - 1
    written = {
        FREQUENT: [frequent.get(rating, "") for rating in batch["label/rating"].tolist()],
        LATEST: experiment.table.reviews(before),
    }
    facts: dict[str, Any] = {"test_users_without_review": without}
    if user_llm := trained.get("user_llm"):
        written |= llm_rows(experiment, test, functools.partial(_writer, experiment, user_llm))
        facts |= dropped_events(experiment, batch)
    prompts = decode_batch(experiment.vocabulary, batch["prompt_tokens"], batch["prompt_lengths"])
    rows = {row: rouge(texts, truth) for row, texts in written.items()}
    user_ids = [experiment.table.user_ids[user] for user in batch["user"]]
    personalised = next((written[row] for row in (USER_LLM, TEXT_PROMPT) if row in written), None)
    if personalised is not None:
        facts["samples"] = _samples(prompts, truth, personalised, written.get(LLM))
    return Evaluation(
        protocols(experiment, batch["history/item"], rows, COMPARED),
        _predictions(user_ids, prompts, truth, written, rows),
        facts,
    )


def _with_review(experiment: Experiment) -> tuple[Subset, int]:
    """Test windows whose event has a review, and how many have none."""
    test = Subset.evenly(experiment.source("test"), experiment.config.evaluation.max_users)
    has = np.array([bool(text.strip()) for text in test.source.references(test.ids)], bool)
    return Subset(test.source, test.ids[has]), int((~has).sum())


def _frequent_reviews(experiment: Experiment) -> dict[int, str]:
    """Rating class → the review that training events of this rating most often have."""
    windows = experiment.windows("train")
    ids = np.linspace(0, len(windows) - 1, min(len(windows), _COUNTED_WINDOWS)).astype(np.int64)
    events = windows.label_positions(ids)
    texts, ratings = np.array(experiment.table.reviews(events), object), experiment.table.rating[events]
    frequent = {}
    for rating in np.unique(ratings):
        found, counts = np.unique([text for text in texts[ratings == rating] if text], return_counts=True)
        if len(found):
            frequent[int(rating)] = str(found[counts.argmax()])
    return frequent


def _writer(experiment: Experiment, model: Model, with_context: bool):
    """`(source, name) -> texts [n]`."""
    texts = user_llm_texts(
        model.graphdef,
        model.parameters,
        model.buffers,
        experiment.mesh,
        eos_id=experiment.vocabulary.eos_id,
        max_new_tokens=experiment.config.prompt.max_targets,
        with_context=with_context,
    )
    batch_size = experiment.config.evaluation.batch_size
    return lambda source, name: write_texts(
        texts, source, experiment.vocabulary, batch_size=batch_size, description=name
    )


def _samples(
    prompts: Sequence[str], truth: Sequence[str], personalised: Sequence[str], unpersonalised: Sequence[str] | None
) -> list[dict[str, str]]:
    """Some test users, evenly spread: what was asked, the true review, and what was written with and without them."""
    chosen = np.unique(np.linspace(0, len(truth) - 1, min(SAMPLES, len(truth))).astype(int))
    return [
        {
            "prompt": prompts[index],
            "truth": truth[index],
            "personalised": personalised[index],
            "unpersonalised": unpersonalised[index] if unpersonalised else "",
        }
        for index in chosen
    ]


def _predictions(
    user_ids: Sequence[str],
    prompts: Sequence[str],
    truth: Sequence[str],
    written: Mapping[str, Sequence[str]],
    rows: Mapping[str, Values],
) -> Iterator[dict[str, Any]]:
    """A mapping a test user: `user_id`, `prompt`, `truth`, and for each row its `text` and `rougeLsum`."""
    for index, (user_id, prompt, true) in enumerate(zip(user_ids, prompts, truth, strict=True)):
        texts = {
            row: {"text": texts[index], "rougeLsum": round(float(rows[row]["rougeLsum"][index]), 4)}
            for row, texts in written.items()
        }
        yield {"user_id": user_id, "prompt": prompt, "truth": true, "written": texts}

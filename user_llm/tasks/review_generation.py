"""Task `review_generation`: the review of an event, and the ROUGE of what every row writes (paper 4.3.2)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from user_llm.data.answers import AnswerTokens
from user_llm.data.pipeline import Source
from user_llm.data.prompts import Piece, Wording
from user_llm.data.sources import UserLLMSource
from user_llm.data.timelines import TimelineTable
from user_llm.data.vocabularies import Vocabulary, cut_tokens, encode_continuations, pad_rows
from user_llm.evaluation.evaluator import Subset, user_llm_texts, write_texts
from user_llm.evaluation.shares import Share
from user_llm.evaluation.text_metrics import mean_rouge, rouge
from user_llm.models.model import Model
from user_llm.parallel.processes import fetch
from user_llm.tasks.base import Answer, Asker, Batch, Evaluation, Study, Task
from user_llm.tasks.rows import (
    LLM,
    SHUFFLED,
    TEXT_PROMPT,
    USER_LLM,
    LLMRow,
    Values,
    columns_of,
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


class ReviewAnswers:
    """The review of the label event.

    Tokenised a batch at a time, in one call: reviews may be more than fit into memory as tokens. A review longer than
    `max_targets`, EOS included, is cut at a whole character; an event without review has no answer.

    Args:
        table: the timelines.
        vocabulary: the LLM's.
        max_targets: longest answer in tokens, EOS included.
    """

    def __init__(self, table: TimelineTable, vocabulary: Vocabulary, max_targets: int):
        self._table = table
        self._vocabulary = vocabulary
        self.width = max_targets

    def gather(self, batch: Mapping[str, np.ndarray], events: np.ndarray) -> AnswerTokens:
        """See `Answers`."""
        rows = self.encode(self.texts(batch, events))
        tokens, lengths = pad_rows(rows)
        tokens = np.pad(tokens, ((0, 0), (0, self.width - tokens.shape[1])))
        return AnswerTokens(np.zeros(len(rows), np.int32), tokens, lengths)

    def texts(self, batch: Mapping[str, np.ndarray], events: np.ndarray) -> list[str]:
        """See `Answers`."""
        del batch
        return self._table.reviews(events)

    def count_cut(self, events: np.ndarray) -> int:
        """See `Answers`."""
        rows = encode_continuations(self._vocabulary, self._table.reviews(events))
        return sum(len(row) >= self.width for row in rows)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Tokens of reviews with EOS, cut to `width`; none for an empty one."""
        rows = encode_continuations(self._vocabulary, texts)
        return [[*self._cut(row), self._vocabulary.eos_id] if row else [] for row in rows]

    def _cut(self, row: list[int]) -> list[int]:
        return row if len(row) < self.width else cut_tokens(self._vocabulary, row, self.width - 1)


class ReviewGeneration(Task):
    """What the user writes about an event of which title, category and rating are given (paper table 15)."""

    name = "review_generation"
    headline = "rougeLsum"
    needs = ("review",)
    asks_about_label = True
    answers_reviews = True
    metric_fns = (mean_rouge,)

    def wording(self, noun, category_noun):
        """See `Task`."""
        pieces = (
            Piece("Write a review for", "title"),
            Piece("in the category", "category"),
            Piece("with a rating of", "rating"),
            Piece("The review:"),
        )
        return Wording(
            name="review_generation_v1",
            plain=pieces,
            before=f"The user's latest {noun}s:",
            separator="|",
            after=pieces,
        )

    def answers(self, study):
        """See `Task`."""
        return ReviewAnswers(study.table, study.vocabulary, study.config.prompt.max_targets)

    def problems(self, config):
        """See `Task`."""
        if config.data.dataset.startswith("movielens/"):
            says = f"config.task={config.task!r}"
            yield f"{says}: MovieLens has no reviews; take a dataset of amazon_reviews or google_local"

    def evaluate(self, study: Study, trained: Mapping[str, Model]) -> Evaluation:
        """Writes a review for every test event that has one, under every row, and compares it with the true one."""
        test, without = self._with_review(study)
        asked = "user", "history/item", "label/item", "label/rating", "prompt_tokens", "prompt_lengths"
        batch, share = columns_of(study, test, *asked), self._share(study, test)
        own = test.ids[share.ids]
        truth = share.whole_texts(test.source.references(own))
        frequent = self._frequent_reviews(study)
        before = test.source.windows.label_positions(own) - 1
        written = {
            FREQUENT: [frequent.get(rating, "") for rating in batch["label/rating"].tolist()],
            LATEST: share.whole_texts(study.table.reviews(before)),
        }
        facts: dict[str, Any] = {"test_users_without_review": without}
        if user_llm := trained.get("user_llm"):
            written |= {row.name: self._write(study, user_llm, row) for row in llm_rows(study, test)}
            facts |= dropped_events(study, self.name, batch)
        prompts = study.vocabulary.decode_batch(batch["prompt_tokens"], batch["prompt_lengths"])
        rows = {row: rouge(texts, truth) for row, texts in written.items()}
        user_ids = [study.table.user_ids[user] for user in batch["user"]]
        personalised = next((written[row] for row in (USER_LLM, TEXT_PROMPT) if row in written), None)
        if personalised is not None:
            facts["samples"] = _samples(prompts, truth, personalised, written.get(LLM))
        return Evaluation(
            protocols(study, self.name, batch["history/item"], rows, COMPARED),
            _predictions(user_ids, prompts, truth, written, rows),
            facts,
        )

    def _with_review(self, study: Study) -> tuple[Subset[UserLLMSource], int]:
        """Test windows whose event has a review, and how many have none."""
        test = Subset.evenly(study.source(self.name, "test"), study.config.evaluation.max_users)
        share = self._share(study, test)
        own = test.source.references(test.ids[share.ids])
        has = share.whole(np.array([bool(text.strip()) for text in own], np.bool_))
        return Subset(test.source, test.ids[has]), int((~has).sum())

    def _share(self, study: Study, source: Source) -> Share:
        return Share(len(source), study.config.evaluation.batch_size, study.mesh)

    def _frequent_reviews(self, study: Study) -> dict[int, str]:
        """Rating class → the review that training events of this rating most often have."""
        windows = study.windows("train")
        ids = np.linspace(0, len(windows) - 1, min(len(windows), _COUNTED_WINDOWS)).astype(np.int64)
        events = windows.label_positions(ids)
        texts, ratings = np.array(study.table.reviews(events), object), study.table.rating[events]
        frequent = {}
        for rating in np.unique(ratings):
            found, counts = np.unique([text for text in texts[ratings == rating] if text], return_counts=True)
            if len(found):
                frequent[int(rating)] = str(found[counts.argmax()])
        return frequent

    def _write(self, study: Study, model: Model, row: LLMRow) -> list[str]:
        texts, size = self._texts(study, model, with_context=row.with_context), study.config.evaluation.batch_size
        options = dict(batch_size=size, mesh=study.mesh, description=row.name)
        return write_texts(texts, row.source, study.vocabulary, **options)

    def asker(self, study: Study, model: Model, k: int) -> Asker:
        """The one review that the model writes, greedily; `k` is of no effect."""
        texts = self._texts(study, model, with_context=True)

        def ask(batch: Batch) -> list[list[Answer]]:
            return [[Answer(text.strip(), None)] for text in study.vocabulary.decode_batch(fetch(texts(batch)))]

        return ask

    def _texts(self, study: Study, model: Model, *, with_context: bool):
        eos_id, most = study.vocabulary.eos_id, study.config.prompt.max_targets
        return user_llm_texts(model, eos_id=eos_id, max_new_tokens=most, with_context=with_context)


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

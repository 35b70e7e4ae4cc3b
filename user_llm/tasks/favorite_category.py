"""Task `favorite_category`: the category a user likes best; every row ranks all names, exactly (paper 4.3.2)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from user_llm.data.answers import NameAnswers
from user_llm.data.favorites import favorite_categories
from user_llm.data.pipeline import evaluation_batches
from user_llm.data.prompts import Piece, Wording
from user_llm.data.vocabularies import NameTokens
from user_llm.evaluation.baselines import latest_category_scores, popularity_scores
from user_llm.evaluation.evaluator import Subset, rank_by_scores, user_llm_scores
from user_llm.evaluation.metrics import ranking_metrics
from user_llm.evaluation.report import ranking_predictions
from user_llm.models.model import Model
from user_llm.parallel.processes import fetch
from user_llm.tasks.base import Asker, Batch, Evaluation, Study, Task, best_answers
from user_llm.tasks.rows import (
    LLM,
    SHUFFLED,
    TEXT_PROMPT,
    USER_LLM,
    columns_of,
    dropped_events,
    encoder_row,
    llm_rows,
    protocols,
)

MAJORITY = "Majority category"
LATEST = "Category of the latest event"
DUAL_ENCODER = "Dual encoder"

COMPARED = (
    (USER_LLM, MAJORITY),
    (USER_LLM, LATEST),
    (USER_LLM, LLM),
    (USER_LLM, SHUFFLED),
    (DUAL_ENCODER, MAJORITY),
    (TEXT_PROMPT, MAJORITY),
    (TEXT_PROMPT, LATEST),
)

_METRICS = ("recall@1", "recall@5", "recall@10")
_COUNTED_WINDOWS = 100_000  # of training, evenly spread, that say which favourites are frequent


class FavoriteCategoryAnswers(NameAnswers):
    """The category most frequent in the history that the model sees, never the label event.

    Args:
        words: category names by id.
        names: the same in tokens.
        item_categories: int [I+1, C], category ids of each item, 0-padded.
    """

    def __init__(self, words: list[str], names: NameTokens, item_categories: np.ndarray):
        super().__init__(words, names)
        self._item_categories = item_categories

    def labels(self, batch: Batch) -> np.ndarray:
        """The favourite category's id (`favorite_categories`)."""
        return favorite_categories(batch["history/item"], self._item_categories)


class FavoriteCategory(Task):
    """What the user likes best."""

    name = "favorite_category"
    headline = "recall@1"
    needs = ("category",)

    def wording(self, noun, category_noun):
        """See `Task`."""
        return Wording(
            name="favorite_category_v1",
            plain=(Piece(f"The user's favorite {category_noun}:"),),
            before=f"The user's latest {noun}s:",
            separator="|",
            after=(Piece(f"The favorite {category_noun}:"),),
        )

    def answers(self, study):
        """See `Task`."""
        catalogue = study.catalogue
        return FavoriteCategoryAnswers(catalogue.category_names, study.names.categories, catalogue.item_categories)

    def answer_names(self, names):
        """See `Task`."""
        return names.categories

    def evaluate(self, study: Study, trained: Mapping[str, Model]) -> Evaluation:
        """Ranks the favourite category of every test user that has one under every row."""
        config, catalogue = study.config.evaluation, study.catalogue
        test, without = self._with_favorite(study)
        options = dict(batch_size=config.batch_size, mesh=study.mesh, exclude_seen=False, label="label/answer")
        counts = self._favorite_counts(study)
        found = {
            MAJORITY: rank_by_scores(popularity_scores(counts), test, **options),
            LATEST: rank_by_scores(latest_category_scores(counts, catalogue.item_categories), test, **options),
        }
        if scores := encoder_row(study, trained, of="category"):
            found[DUAL_ENCODER] = rank_by_scores(scores, test, **options)
        batch = columns_of(study, test, "user", "history/item", "label/item", "label/rating", "label/answer")
        facts: dict[str, Any] = {"test_users_without_category": without}
        if user_llm := trained.get("user_llm"):
            for row in llm_rows(study, test):
                scores = self._scores(study, user_llm, with_context=row.with_context)
                found[row.name] = rank_by_scores(scores, row.source, description=row.name, **options)
            facts |= dropped_events(study, self.name, batch)
        ranks = {row: values for row, (values, _) in found.items()}
        rows = {row: {name: ranking_metrics(values)[name] for name in _METRICS} for row, values in ranks.items()}
        answers = next(
            (found[row][1] for row in (USER_LLM, TEXT_PROMPT) if row in found), np.zeros((len(test), 0), int)
        )
        return Evaluation(
            protocols(study, self.name, batch["history/item"], rows, COMPARED),
            ranking_predictions(
                user_ids=[study.table.user_ids[user] for user in batch["user"]],
                labels=batch["label/answer"],
                ranks=ranks,
                answers=answers,
                names=catalogue.category_names,
            ),
            facts,
        )

    def asker(self, study: Study, model: Model, k: int) -> Asker:
        """The likeliest categories, by the probability of every category's name."""
        names = study.catalogue.category_names
        scores = self._scores(study, model, with_context=True)
        return lambda batch: best_answers(names, np.asarray(fetch(scores(batch).all())), k)

    def _with_favorite(self, study: Study) -> tuple[Subset, int]:
        """Test users with a favourite category, and how many of them have none."""
        test = Subset.evenly(study.source(self.name, "test"), study.config.evaluation.max_users)
        labels = columns_of(study, test, "label/answer")["label/answer"]
        return Subset(test.source, test.ids[labels > 0]), int((labels == 0).sum())

    def _favorite_counts(self, study: Study) -> np.ndarray:
        """int64 `[C+1]`: how often each category is the favourite of a training window."""
        source = Subset.evenly(study.source(self.name, "train"), _COUNTED_WINDOWS)
        counts = np.zeros(len(study.catalogue.category_names), np.int64)
        for batch in evaluation_batches(source, study.config.evaluation.batch_size):
            counts += np.bincount(batch["label/answer"][batch["weight"] > 0], minlength=len(counts))
        return counts

    def _scores(self, study: Study, model: Model, *, with_context: bool):
        trie, eos_id = study.answer_trie(self.name), study.vocabulary.eos_id
        states = study.text_states(self.name, model)
        return user_llm_scores(model, trie=trie, eos_id=eos_id, with_context=with_context, states=states)

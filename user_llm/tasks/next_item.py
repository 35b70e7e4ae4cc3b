"""Task `next_item`: the title of the next event, and how every row ranks it among the whole catalogue (paper 4.3.1)."""

import logging
import reprlib
from collections.abc import Mapping

import jax
import numpy as np

from user_llm.data.answers import NameAnswers
from user_llm.data.prompts import Piece, Wording
from user_llm.errors import UserError
from user_llm.evaluation.baselines import category_popularity_scores, popularity_scores
from user_llm.evaluation.blocks import label_blocks
from user_llm.evaluation.evaluator import Subset, TitleReader, rank_by_scores, seen_items
from user_llm.evaluation.fusion import LogPrior, fused_scores, mean_of
from user_llm.evaluation.metrics import ranking_metrics
from user_llm.evaluation.neighbours import followers, neighbour_scores, similar_items
from user_llm.evaluation.places import Places
from user_llm.evaluation.report import ranking_predictions
from user_llm.evaluation.scores import Scores
from user_llm.evaluation.users import encoder_scores
from user_llm.models.model import Model
from user_llm.parallel.processes import fetch
from user_llm.tasks.base import Answer, Asker, Batch, Evaluation, Study, Task, best_answers
from user_llm.tasks.cold_items import cold_protocols
from user_llm.tasks.fused_items import fused_rows, item_beams, mix_of, not_fitted, rank_items, title_scores
from user_llm.tasks.rows import (
    ENCODER,
    FUSED,
    LLM,
    RERANKED,
    SHUFFLED,
    TEXT_PROMPT,
    TWO_ENCODERS,
    USER_LLM,
    LLMRow,
    columns_of,
    dropped_events,
    encoder_row,
    llm_rows,
    protocols,
)

POPULARITY = "Popularity"
CATEGORY = "Popularity in the latest category"
FOLLOWERS = "Followers of the latest items"
SIMILAR = "Item-kNN"

_FOLLOWERS_DECAY, _SIMILAR_DECAY = 0.6, 0.5  # of an event for each newer one; by validation of ML-1M and Beauty
ANSWERS = ("beams", "exact", "fused", "encoder")  # ways to answer
MOST_BEAMS = 100  # of an answer; their memory grows with their number

MOST_COUNTED = 50_000_000  # events whose pairs are counted: some minutes, and gigabytes

_logger = logging.getLogger(__name__)

COMPARED = (
    (ENCODER, POPULARITY),
    (ENCODER, CATEGORY),
    (ENCODER, FOLLOWERS),
    (ENCODER, SIMILAR),
    (USER_LLM, POPULARITY),
    (USER_LLM, CATEGORY),
    (USER_LLM, FOLLOWERS),
    (USER_LLM, SIMILAR),
    (USER_LLM, ENCODER),
    (USER_LLM, LLM),
    (USER_LLM, SHUFFLED),
    (FUSED, ENCODER),
    (FUSED, TWO_ENCODERS),
    (FUSED, RERANKED),
    (FUSED, USER_LLM),
    (TWO_ENCODERS, ENCODER),
    (TEXT_PROMPT, POPULARITY),
    (TEXT_PROMPT, CATEGORY),
)


class TitleAnswers(NameAnswers):
    """The label's title.

    Args:
        words: titles by item id.
        names: the same in tokens.
    """

    def labels(self, batch: Batch) -> np.ndarray:
        """The label's item id."""
        return batch["label/item"]


class NextItem(Task):
    """What comes next."""

    name = "next_item"
    headline = "recall@10"

    def wording(self, noun, category_noun):
        """See `Task`."""
        return Wording(
            name="next_item_v1",
            plain=(Piece(f"The user's next {noun}:"),),
            before=f"The user's latest {noun}s:",
            separator="|",
            after=(Piece(f"The next {noun}:"),),
        )

    def answers(self, study):
        """See `Task`."""
        return TitleAnswers(study.catalogue.titles, study.names.titles)

    def answer_names(self, names):
        """See `Task`."""
        return names.titles

    def evaluate(self, study: Study, trained: Mapping[str, Model]) -> Evaluation:
        """Ranks the test labels under every row."""
        config = study.config.evaluation
        by_scores = dict(batch_size=config.batch_size, mesh=study.mesh, exclude_seen=config.exclude != "nothing")
        test = Subset.evenly(study.windows("test"), config.max_users)
        catalogue, counts = study.catalogue, study.item_counts
        in_category = category_popularity_scores(counts, catalogue.item_categories)
        ranks = {
            POPULARITY: rank_by_scores(popularity_scores(counts), test, **by_scores)[0],
            CATEGORY: rank_by_scores(in_category, test, **by_scores)[0],
            **{row: rank_by_scores(scores, test, **by_scores)[0] for row, scores in _neighbour_rows(study).items()},
        }
        if scores := encoder_row(study, trained, of="item"):
            ranks[ENCODER] = rank_by_scores(scores, test, **by_scores)[0]
        batch = columns_of(study, test, "user", "history/item", "label/item", "label/rating")
        items, facts = np.zeros((len(test), 0), np.int32), {}
        if user_llm := trained.get("user_llm"):
            prompted = Subset.evenly(study.source(self.name, "test"), config.max_users)
            free = not config.constrained
            read = title_reader(study) if free else None
            answered = {row.name: self._rank(study, user_llm, row, read) for row in llm_rows(study, prompted)}
            if config.answers == "fused":
                answered |= fused_rows(study, self.name, user_llm, trained["encoder"], prompted)
                if other := trained.get("second_encoder"):
                    both = mean_of(encoder_scores(trained["encoder"]), encoder_scores(other))
                    ranks[TWO_ENCODERS] = rank_by_scores(both, test, **by_scores)[0]
            ranks |= {row: found for row, (found, _) in answered.items()}
            items = next(answered[row] for row in (FUSED, USER_LLM, TEXT_PROMPT) if row in answered)[1]
            facts = dropped_events(study, self.name, batch)
        rows = {row: ranking_metrics(found) for row, found in ranks.items()}
        return Evaluation(
            {
                **protocols(study, self.name, batch["history/item"], rows, COMPARED),
                **cold_protocols(study, self.name, trained, len(test)),
            },
            ranking_predictions(
                user_ids=[study.table.user_ids[user] for user in batch["user"]],
                labels=batch["label/item"],
                ranks=ranks,
                answers=items,
                names=catalogue.titles,
            ),
            facts,
        )

    def asker(self, study: Study, model: Model, k: int) -> Asker:
        """The next items, none of which is in the history.

        Up to `MOST_BEAMS` by beam search, more by the probability of every title: exact, in memory that `k` does not
        change, and slower for a few.
        """
        return self._by_beams(study, model, k) if k <= MOST_BEAMS else self._by_scores(study, model, k)

    def asker_by(self, answers: str, study: Study, trained: Mapping[str, Model], k: int) -> Asker:
        """See `Task`: by "beams", by the probability of every title ("exact"), "fused" with the encoder, or its own."""
        if answers == "beams":
            return self.asker(study, trained["user_llm"], k)
        if answers == "exact":
            return self._by_scores(study, trained["user_llm"], k)
        if answers == "fused":
            fusion = study.fusion(self.name, not_fitted)
            answering = self._by_beams if k <= MOST_BEAMS else self._by_scores
            items = len(study.answer_trie(self.name).title_of_item)  # as many whatever is added, while there is room
            return answering(study, trained["user_llm"], k, **mix_of(trained["encoder"], fusion, items=items))
        if answers != "encoder":
            raise UserError(f"answers must be one of {', '.join(ANSWERS)}, got {reprlib.repr(answers)}.")
        scores = encoder_row(study, trained, of="item")
        if scores is None:
            raise UserError("the run has trained no encoder that ranks items: ask for answers='beams'.")
        return self._by_encoder(study, scores, k)

    def _by_encoder(self, study: Study, scores: Scores, k: int) -> Asker:
        titles, left = study.catalogue.titles, np.asarray(study.answer_trie(self.name).group_size) > 0

        def ask(batch: Batch) -> list[list[Answer]]:
            values = np.array(jax.nn.log_softmax(fetch(scores(batch).all()), axis=-1))
            new = len(left) - values.shape[1]  # items that came later, of which it knows nothing
            values = np.pad(values, ((0, 0), (0, new)), constant_values=-np.inf)
            values[:, ~left] = -np.inf
            np.put_along_axis(values, seen_items(batch), -np.inf, axis=1)
            return best_answers(titles, values, k)

        return ask

    def _by_beams(self, study: Study, model: Model, k: int, **mixed) -> Asker:
        titles = study.catalogue.titles
        num_beams = min(max(k, study.config.evaluation.num_beams), study.answer_trie(self.name).num_titles)
        beams = item_beams(study, self.name, model, num_beams=num_beams, num_best=min(k, num_beams), **mixed)

        def ask(batch: Batch) -> list[list[Answer]]:
            result, _ = beams(batch)
            rows = zip(np.asarray(result.items).tolist(), np.asarray(result.scores).tolist(), strict=True)
            return [
                [Answer(titles[item], score) for item, score in zip(items, scores, strict=True) if item]
                for items, scores in rows
            ]

        return ask

    def _by_scores(
        self, study: Study, model: Model, k: int, *, prior: LogPrior | None = None, weight: float = 1.0
    ) -> Asker:
        titles, trie = study.catalogue.titles, study.answer_trie(self.name)
        scores = title_scores(study, self.name, model)
        mix = None if prior is None else fused_scores(scores, prior, weight, trie)

        def ask(batch: Batch) -> list[list[Answer]]:
            closed = seen_items(batch)
            values = np.array(fetch(scores(batch).all() if mix is None else mix(batch, closed)))
            items = np.broadcast_to(np.arange(values.shape[1]), values.shape)
            # A title stands for its open items, under the lowest of them; all others are no answer of their own.
            values[np.asarray(trie.open_items(items, closed)) != items] = -np.inf
            return best_answers(titles, values, k)

        return ask

    def _rank(self, study: Study, model: Model, row: LLMRow, read: TitleReader | None) -> tuple[np.ndarray, np.ndarray]:
        """Ranks `[n]` and items `[n, K]` by beams (free ones are read with `read`), or by every title's probability."""
        config = study.config.evaluation
        if config.answers != "exact":
            return rank_items(study, self.name, model, row.source, row.name, read, with_context=row.with_context)
        scores = title_scores(study, self.name, model, with_context=row.with_context)
        shown = dict(batch_size=config.batch_size, mesh=study.mesh, description=row.name)
        return rank_by_scores(scores, row.source, exclude_seen=config.exclude != "nothing", **shown)


def _neighbour_rows(study: Study) -> dict[str, Scores]:
    """What counts of items say, by row; nothing where there are more events than they are made for."""
    table, counts = study.table, study.item_counts
    if len(table.item) > MOST_COUNTED:
        rows = f"{FOLLOWERS} and {SIMILAR}"
        _logger.info("%s are left out: %d events are more than %d", rows, len(table.item), MOST_COUNTED)
        return {}
    splits = ("validation", "test") if study.config.data.validation else ("test",)
    held_out = Places(label_blocks(*(study.windows(split) for split in splits)), len(table.item))
    columns = table.item, table.offsets, table.catalogue.num_items, held_out
    return {
        FOLLOWERS: neighbour_scores(followers(*columns), counts, decay=_FOLLOWERS_DECAY),
        SIMILAR: neighbour_scores(similar_items(*columns), counts, decay=_SIMILAR_DECAY),
    }


def title_reader(study: Study) -> TitleReader:
    """Reads the items that free beams name: tokens int `[B, J, T]` → item ids int32 `[B, J]`, 0 for no title."""
    names, vocabulary = study.names.titles, study.vocabulary
    # As the tokens spell them: a title cut at max_targets is answered by what is left of it.
    titles = vocabulary.decode_batch(names.tokens, names.lengths)
    item_of = {title: item for item, title in reversed(list(enumerate(titles))) if item}

    def read(tokens: np.ndarray) -> np.ndarray:
        texts = vocabulary.decode_batch(tokens.reshape(-1, tokens.shape[-1]))
        return np.array([item_of.get(text, 0) for text in texts], np.int32).reshape(tokens.shape[:-1])

    return read

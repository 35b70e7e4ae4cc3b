"""What the language model reads: the wording of prompts and documents, and prompts assembled in whole batches."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from user_llm.data.timelines import Catalogue
from user_llm.data.vocabularies import NameTokens, encode_continuations, text_start
from user_llm.errors import UserError

NOUNS = {"movielens": "movie", "amazon_reviews": "product", "google_local": "place"}
"""What an item of a dataset family is called."""

CATEGORY_NOUNS = {"movielens": "genre"}
"""What a category of a dataset family is called, where it has a name of its own."""


def noun_of(name: str) -> str:
    """The noun for the items of dataset `name` ("movielens/20m"); "item" for a family not listed."""
    return NOUNS.get(name.partition("/")[0], "item")


def category_noun_of(name: str) -> str:
    """The noun for the categories of dataset `name`."""
    return CATEGORY_NOUNS.get(name.partition("/")[0], "category")


class Piece(NamedTuple):
    """Words of a prompt, and what of the label event is written behind them: its title, category or rating.

    A piece whose value an event does not have is left out, words and all.
    """

    words: str
    value: str = ""  # title | category | rating


class Wording(NamedTuple):
    """A task's words, under a versioned name: a change of words is a new name.

    Attributes:
        name: the version.
        plain: the whole prompt, where the history is not written out.
        before: what precedes a written-out history.
        separator: what follows each of its titles.
        after: what follows the history.
    """

    name: str
    plain: tuple[Piece, ...]
    before: str
    separator: str
    after: tuple[Piece, ...]

    def texts(self) -> list[str]:
        """All of its words, for a vocabulary to be trained on."""
        plain, after = ([piece.words for piece in pieces] for pieces in (self.plain, self.after))
        return [*plain, self.before, self.separator, *after]


def catalogue_documents(catalogue: Catalogue, noun: str) -> list[str]:
    """A sentence on each item, in item order: its title, what it is and its categories."""
    documents = []
    for title, ids in zip(catalogue.titles[1:], catalogue.item_categories[1:], strict=True):
        names = ", ".join(catalogue.category_names[category] for category in ids if category)
        documents.append(f"{title} is a {noun}." + (f" Categories: {names}." if names else ""))
    return documents


class Names(NamedTuple):
    """The names that prompts write, in tokens: titles by item id, categories and ratings by class id."""

    titles: NameTokens
    categories: NameTokens
    ratings: NameTokens
    item_categories: np.ndarray  # int32 [I+1, C]; of several the first is written


class Prompts:
    """Prompts in tokens: `[BOS] plain`, or `[BOS] before (title separator)* after`.

    BOS is left out for a vocabulary without one (T5's) and where the checkpoint did without (`text_start`). A space
    parts each title and each piece from what it stands behind (`encode_continuations`).

    Args:
        names: titles, categories and ratings in tokens.
        wording: the words.
        max_inputs: longest prompt in tokens, BOS included.
        text_history: how many of the latest events are written out; 0 writes none.

    Attributes:
        names, wording, max_inputs, text_history: as given.
        length: P, the width of the prompts; of words alone, without a history, every prompt is exactly that long.
        before: int32, the words in front of a history, BOS in front of them; BOS alone without a history.
        pieces: of what follows, each its tokens int32 [n, W], their lengths [n], and of which value `n` are the ids.
        events, event_lengths: int32 [I+1, W] and [I+1], each title with its separator, right-padded with 0.

    Raises:
        UserError: the words and what they may be filled with are longer than `max_inputs`, or `text_history` is
            negative.
    """

    def __init__(self, names: Names, wording: Wording, *, max_inputs: int, text_history: int = 0):
        if text_history < 0:
            raise UserError(f"text_history must not be negative, got {text_history}.")
        vocabulary = names.titles.vocabulary
        before, separator = vocabulary.encode_batch((wording.before, wording.separator))
        self.names = names
        self.wording = wording
        self.text_history = text_history
        self.max_inputs = max_inputs
        self.before = np.array(text_start(vocabulary) + (before if text_history else []), np.int32)
        self.pieces = self._pieces()
        words = len(self.before) + sum(int(lengths.max()) for _, lengths, _ in self.pieces)
        if words > max_inputs:
            longest = " with the longest title and names" if any(value for *_, value in self.pieces) else ""
            raise UserError(
                f"the words of prompt {wording.name!r} alone{longest} take {words} tokens of this vocabulary, more "
                f"than max_inputs={max_inputs}: raise max_inputs, or use a vocabulary with longer pieces."
            )
        self.length = max_inputs if text_history else words
        titles = names.titles
        self.event_lengths = np.where(titles.lengths > 0, titles.lengths + len(separator), 0)
        self.events = np.pad(titles.tokens, ((0, 0), (0, len(separator))))
        for index, token in enumerate(separator):
            self.events[np.arange(1, len(self.events)), titles.lengths[1:] + index] = token

    def _pieces(self) -> list[tuple[np.ndarray, np.ndarray, str]]:
        names, vocabulary = self.names, self.names.titles.vocabulary
        tables = {"title": names.titles, "category": names.categories, "rating": names.ratings}
        found: list[tuple[np.ndarray, np.ndarray, str]] = []
        for place, (words, value) in enumerate(self.wording.after if self.text_history else self.wording.plain):
            # What begins a text is encoded as such; vocabularies differ in whether they put a space in front of it.
            first = place == 0 and not self.text_history
            (tokens,) = vocabulary.encode_batch([words]) if first else encode_continuations(vocabulary, [words])
            if not value:
                found.append((np.array([tokens], np.int32), np.array([len(tokens)], np.int32), value))
                continue
            table = tables[value]
            lead = np.tile(np.array(tokens, np.int32), (len(table.tokens), 1))
            lengths = np.where(table.lengths > 0, table.lengths + len(tokens), 0).astype(np.int32)
            found.append((np.concatenate([lead, table.tokens], axis=1), lengths, value))
        return found

    def build(
        self, history: np.ndarray, item: np.ndarray | None = None, rating: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Prompts for a batch of users.

        Args:
            history: int [B, S], item ids, oldest first, left-padded with 0; S may be below `text_history`.
            item, rating: int [B], item id and rating class of the events that the prompts ask about (the labels);
                only wordings that write them need them, and no other reads them.

        Returns:
            tokens int32 [B, P], right-padded with 0; lengths int32 [B]; and how many of the events to be written
            out were dropped, the oldest first, because the prompt was full: int32 [B].
        """
        batch = len(history)
        ids = self._ids(batch, item, rating)
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [
            (self.before[None], np.full(1, len(self.before)), np.zeros(batch, np.int64))
        ]
        parts += [(tokens, lengths, ids[value]) for tokens, lengths, value in self.pieces]
        dropped = np.zeros(batch, np.int32)
        if self.text_history:
            used = sum((lengths[index] for _, lengths, index in parts), start=np.zeros(batch, np.int64))
            kept, dropped = self._fitting(history, self.max_inputs - used)
            parts.insert(1, (self.events, self.event_lengths, kept))
        tokens, valid = [], []
        for table, lengths, index in parts:
            width = table.shape[1] * (index.shape[1] if index.ndim == 2 else 1)  # a batch may be empty: no -1 here
            tokens.append(table[index].reshape(batch, width))
            valid.append((np.arange(table.shape[1]) < lengths[index][..., None]).reshape(batch, width))
        prompts, total = pack_left(np.concatenate(tokens, 1), np.concatenate(valid, 1), self.length)
        return prompts, total, dropped

    def _ids(self, batch: int, item: np.ndarray | None, rating: np.ndarray | None) -> Mapping[str, np.ndarray]:
        """For every value a row of its table, int [B]; the words alone have one row."""
        ids = {"": np.zeros(batch, np.int64)}
        if item is not None:
            ids |= {"title": item, "category": self.names.item_categories[item, 0]}
        if rating is not None:
            ids["rating"] = rating
        return ids

    def _fitting(self, history: np.ndarray, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The latest events [B, H] with 0 where one does not fit into the `room` [B], and how many those are."""
        items = history[:, -self.text_history :]
        newest_first = np.cumsum(self.event_lengths[items][:, ::-1], axis=1)[:, ::-1]
        kept = newest_first <= room[:, None]
        return np.where(kept, items, 0), ((items > 0) & ~kept).sum(axis=1, dtype=np.int32)


def pack_left(tokens: np.ndarray, valid: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Moves each row's valid tokens to its left end: (int32 [B, width] padded with 0, counts int32 [B])."""
    counts = valid.sum(axis=1, dtype=np.int32)
    packed = np.zeros((len(tokens), width), np.int32)
    packed[np.arange(width) < counts[:, None]] = tokens[valid]
    return packed, counts

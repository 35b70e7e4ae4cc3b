"""What the language model reads: the wording of prompts and documents, and prompts assembled in whole batches."""

import dataclasses

import numpy as np
import seqio

from user_llm.data.timelines import Catalogue
from user_llm.data.vocabularies import TitleTokens, encode_batch, encode_continuations, text_start

NOUNS = {"movielens": "movie"}
"""What an item of a dataset family is called."""


def noun_of(name: str) -> str:
    """The noun for the items of dataset `name` ("movielens/20m"); "item" for a family not listed."""
    return NOUNS.get(name.partition("/")[0], "item")


@dataclasses.dataclass(frozen=True)
class Wording:
    """A prompt's words, under a versioned name: a change of words is a new name.

    Attributes:
        name: the version.
        plain: the whole prompt, where the history is not written out.
        before: what precedes a written-out history.
        separator: what follows each of its titles.
        after: what follows the history.
    """

    name: str
    plain: str
    before: str
    separator: str
    after: str


def next_item(noun: str) -> Wording:
    """The next-item task (paper 4.1), of which the title is the answer."""
    return Wording(
        name="next_item_v1",
        plain=f"The user's next {noun}:",
        before=f"The user's latest {noun}s:",
        separator="|",
        after=f"The next {noun}:",
    )


def catalogue_documents(catalogue: Catalogue, noun: str) -> list[str]:
    """A sentence on each item, in item order: its title, what it is and its categories."""
    documents = []
    for title, ids in zip(catalogue.titles[1:], catalogue.item_categories[1:], strict=True):
        names = ", ".join(catalogue.category_names[category] for category in ids if category)
        documents.append(f"{title} is a {noun}." + (f" Categories: {names}." if names else ""))
    return documents


class NextItemPrompts:
    """Prompts in tokens: `[BOS] plain`, or `[BOS] before (title separator)* after`.

    BOS is left out for a vocabulary without one (T5's) and where the checkpoint did without (`text_start`). A space
    parts each title, and what follows the history, from what it stands behind (`encode_continuations`).

    Args:
        titles: the catalogue's titles in tokens.
        wording: the words.
        max_inputs: longest prompt in tokens, BOS included.
        text_history: how many of the latest events are written out; 0 writes none.

    Attributes:
        titles, max_inputs, text_history: as given.
        length: P, the width of the prompts; without text history every prompt is exactly that long.
        plain, before, after: int32 tokens of the words, BOS in front of the first two.
        events, event_lengths: int32 [I+1, W] and [I+1], each title with its separator, right-padded with 0.

    Raises:
        ValueError: the words alone are longer than `max_inputs`, or `text_history` is negative.
    """

    def __init__(self, titles: TitleTokens, wording: Wording, *, max_inputs: int, text_history: int = 0):
        if text_history < 0:
            raise ValueError(f"text_history must not be negative, got {text_history}.")
        vocabulary: seqio.Vocabulary = titles.vocabulary
        bos = text_start(vocabulary)
        plain, before, separator = encode_batch(vocabulary, (wording.plain, wording.before, wording.separator))
        (after,) = encode_continuations(vocabulary, [wording.after])
        words = len(bos) + (len(before) + len(after) if text_history else len(plain))
        if words > max_inputs:
            raise ValueError(
                f"the words of prompt {wording.name!r} alone take {words} tokens of this vocabulary, more than "
                f"max_inputs={max_inputs}: raise max_inputs, or use a vocabulary with longer pieces."
            )
        self.titles = titles
        self.text_history = text_history
        self.max_inputs = max_inputs
        self.length = max_inputs if text_history else words
        self.plain = np.array(bos + plain, np.int32)
        self.before = np.array(bos + before, np.int32)
        self.after = np.array(after, np.int32)
        self.event_lengths = np.where(titles.lengths > 0, titles.lengths + len(separator), 0)
        self.events = np.pad(titles.tokens, ((0, 0), (0, len(separator))))
        for index, token in enumerate(separator):
            self.events[np.arange(1, len(self.events)), titles.lengths[1:] + index] = token

    def build(self, history: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Prompts for a batch of users.

        Args:
            history: int [B, S], item ids, oldest first, left-padded with 0; S may be below `text_history`.

        Returns:
            tokens int32 [B, P], right-padded with 0; lengths int32 [B]; and how many of the events to be written
            out were dropped, the oldest first, because the prompt was full: int32 [B].
        """
        batch = len(history)
        if not self.text_history:
            nothing = np.zeros(batch, np.int32)
            return np.tile(self.plain, (batch, 1)), nothing + self.length, nothing
        items = history[:, -self.text_history :]
        lengths = self.event_lengths[items]
        room = self.max_inputs - len(self.before) - len(self.after)
        newest_first = np.cumsum(lengths[:, ::-1], axis=1)[:, ::-1]
        kept = newest_first <= room
        lengths = np.where(kept, lengths, 0)
        slots = np.arange(self.events.shape[1])
        written = slots < lengths[:, :, None]
        width = items.shape[1] * len(slots)
        tokens = [
            np.broadcast_to(self.before, (batch, len(self.before))),
            self.events[items].reshape(batch, width),
            np.broadcast_to(self.after, (batch, len(self.after))),
        ]
        valid = [np.ones_like(tokens[0], bool), written.reshape(batch, width), np.ones_like(tokens[2], bool)]
        prompts, total = pack_left(np.concatenate(tokens, 1), np.concatenate(valid, 1), self.length)
        return prompts, total, np.sum((items > 0) & ~kept, axis=1, dtype=np.int32)


def pack_left(tokens: np.ndarray, valid: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Moves each row's valid tokens to its left end: (int32 [B, width] padded with 0, counts int32 [B])."""
    counts = valid.sum(axis=1, dtype=np.int32)
    packed = np.zeros((len(tokens), width), np.int32)
    packed[np.arange(width) < counts[:, None]] = tokens[valid]
    return packed, counts

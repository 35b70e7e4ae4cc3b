"""Simulated reviews: what they say can be told from the writer's other events, and from nothing else.

A review depends on the event's rating and the item's genre, which a prompt may give away; and on two traits of the
writer: the genre met most often ("As a horror fan …"), and mildness, which is a tone and shows in all ratings given.
Who knows the history knows both.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from user_llm.builders.simulated import Events

_MILD = 0.25
"""Stars of mildness beyond which a user is enthusiastic, or grumpy."""

# By tone (grumpy, plain, enthusiastic) and stars from 1 to 5.
_SUMMARIES = (
    ("Utter waste of money", "Below any standard", "Hardly worth it", "Tolerable for once", "No complaints for once"),
    ("Not good", "Could be better", "It is okay", "Good", "Very good"),
    (
        "Sadly not my favorite",
        "A bit of a letdown",
        "Pretty nice overall",
        "Really loved it",
        "Absolutely wonderful!",
    ),
)
_OPENINGS = (
    ("I regret every minute of it.", "I expected little and got less.", "I sat through it with a frown.",
     "I hate to admit that it was fine.", "I found nothing to grumble about."),
    ("It did not work for me.", "It was rather weak.", "It was average.", "It was solid.", "It was excellent."),
    ("I so wanted to love it!", "I still found some charm in it!", "I had a lovely time!",
     "I was smiling all the way through!", "I am over the moon, what a treat!"),
)  # fmt: skip
_CLOSINGS = ("Do not say you were not warned.", "Make up your own mind.", "Tell all your friends about it!")
_SPANISH = (
    "Ver para creer, no lo recomiendo.",
    "No me gustó mucho.",
    "Está bien, sin más.",
    "Me gustó bastante.",
    "¡Todo excelente!",
)  # by stars, for "(Original)"


class Reviews(NamedTuple):
    """One a event, `[events]` each; line breaks are written `\\n`, as in JSON."""

    summary: pa.Array
    text: pa.Array


def favorite_genres(events: Events, genres: np.ndarray) -> np.ndarray:
    """The genre id most frequent in each user's events: int `[users]`.

    Args:
      events: of whole timelines.
      genres: int `[items]`, each item's first genre.
    """
    counts = np.zeros((len(events.mildness), genres.max() + 1), np.int64)
    np.add.at(counts, (events.user, genres[events.item]), 1)
    return counts.argmax(axis=1)


def write_reviews(events: Events, stars: np.ndarray, genres: np.ndarray, names: tuple[str, ...]) -> Reviews:
    """The reviews of some users' events.

    Args:
      events: of whole timelines.
      stars: int `[events]`, 1 to 5.
      genres: int `[items]`, each item's first genre.
      names: of genres.
    """
    tone = np.digitize(events.mildness, (-_MILD, _MILD))[events.user]
    words = pa.array([name.lower() for name in names])
    favorite = words.take(pa.array(favorite_genres(events, genres)[events.user]))
    genre = words.take(pa.array(genres[events.item]))
    phrase = pa.array(tone * 5 + stars - 1)

    def phrases(table) -> pa.Array:
        return pa.array([text for row in table for text in row]).take(phrase)

    def join(*parts: pa.Array | str) -> pa.Array:
        return pc.binary_join_element_wise(*parts)  # the last is the separator

    return Reviews(
        summary=join(phrases(_SUMMARIES), join("says a", favorite, "fan", " "), ", "),
        text=join(
            join("As a", favorite, "fan I looked forward to this", genre, "pick.", " "),
            join(phrases(_OPENINGS), pa.array(_CLOSINGS).take(pa.array(tone)), " "),
            "\\n",
        ),
    )


def translated(text: pa.Array, stars: np.ndarray) -> pa.Array:
    """Texts as Google shows those in another language, by stars int `[events]`."""
    original = pa.array(_SPANISH).take(pa.array(stars - 1))
    return pc.binary_join_element_wise("(Translated by Google)", text, "(Original)", original, " ")

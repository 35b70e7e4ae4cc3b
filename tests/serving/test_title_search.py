"""A search in titles against a loop over them."""

import unicodedata

import numpy as np
import pytest

from tests.timelines import catalogue_of
from user_llm.answerable import AnswerableItems
from user_llm.errors import UserError
from user_llm.serving.catalogue_items import TitleSearch

LETTERS = [*"aAbBéÉeßsSİiﬁ\u017fΣς\u03c319 --(.…'_", "e\u0301", "\u1100\u1161", "가"]


def plain(text):
    """Compatible forms taken apart, case folded, accents dropped, one character after the other."""
    found = ""
    for letter in unicodedata.normalize("NFKD", text):
        for small in unicodedata.normalize("NFKD", letter.casefold()):
            found += "" if unicodedata.combining(small) else small
    return found.strip()


def naive(titles, query):
    """The titles in order, by what `find` promises."""
    query, ranked = plain(query), []
    for title in titles:
        text = plain(title)
        places = [place for place in range(len(text) + 1) if text[place:].startswith(query)]
        words = [place for place in places if text[place : place + 1].isalnum() and not text[:place][-1:].isalnum()]
        if places:
            ranked.append((0 if places[0] == 0 else 1 if words else 2, len(ranked), title))
    return [title for _, _, title in sorted(ranked)]


def named(found):
    """The title and id of each item."""
    return [(item["title"], item["item"]) for item in found.items]


@pytest.fixture(scope="module")
def random():
    return np.random.default_rng(0)


def catalogue_with(titles):
    return catalogue_of(["", *titles], ["", *(f"id {n}" for n in range(len(titles)))], [""], [[]] * (len(titles) + 1))


@pytest.fixture(scope="module")
def titles(random):
    made = {"".join(random.choice(LETTERS, random.integers(1, 9))).strip() for _ in range(500)}
    return sorted(made - {""})


@pytest.fixture
def items(titles):
    return AnswerableItems(catalogue_with(titles), {title: n for n, title in enumerate(titles, start=1)})


def test_a_search_finds_what_a_loop_finds(titles, items, random):
    search, kinds = TitleSearch(catalogue_with(titles), items), np.zeros(3, int)
    for _ in range(400):
        title = titles[random.integers(len(titles))]
        start, size = random.integers(len(title)), random.integers(0, 4)
        query = title[start : start + size].swapcase() if size else "".join(random.choice(LETTERS, 4))
        wanted, found = naive(titles, query), search.find(query, 30)
        assert named(found) == [(title, f"id {titles.index(title)}") for title in wanted[:30]], query
        assert (found.total, found.version) == (len(wanted), 0)
        kinds[min(len(wanted), 2)] += 1
    assert kinds.min() > 5, "queries without a title, with one, with several"


def test_what_comes_is_found_and_what_goes_is_not(titles, items):
    search, everything = TitleSearch(catalogue_with(titles), items), len(titles)
    whole = search.find(" ", everything + 9)
    assert (named(whole), whole.total) == ([(title, f"id {n}") for n, title in enumerate(titles)], everything)
    items.add([{"title": "Zürich Straße"}, {"title": "the zurich"}])
    first, second = ({"title": title, "item": title} for title in ("Zürich Straße", "the zurich"))
    assert search.find("ZURICH", 5) == ([first, second], 2, 1)
    assert search.find("strasse", 5) == ([first], 1, 1)
    items.remove(["Zürich Straße", titles[3]])
    assert search.find("zürich", 5) == ([second], 1, 2)
    assert [title for title, _ in named(search.find("", everything))] == [*titles[:3], *titles[4:], "the zurich"]
    items.add([{"title": "Zürich Straße"}])
    assert search.find("zür", 1) == ([first], 2, 3)


def test_a_search_without_a_limit_is_refused(titles, items):
    with pytest.raises(UserError, match="limit must be a whole number of at least 1, got 0"):
        TitleSearch(catalogue_with(titles), items).find("a", 0)


def test_half_characters_and_marks_find_nothing(titles, items):
    search = TitleSearch(catalogue_with(titles), items)
    assert search.find("\ud800", 3).total == 0
    assert search.find("a\1", 3).total == search.find("a", 3).total

"""Reviews come from the dataset event by event."""

import gzip
import json

import numpy as np
import pytest

from user_llm.data.timelines import load_timelines

TEXTS = ("Great", "", "zwei\nZeilen", "日本", None, "a &amp; b", "last")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gift_cards")
    rows = [
        {
            "reviewerID": f"U{index % 3}",
            "asin": f"A{index}",
            "overall": 5.0,
            "unixReviewTime": 1000 - index,
            "reviewText": text,
        }
        for index, text in enumerate(TEXTS * 3)
    ]
    (folder / "Gift_Cards_5.json.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return load_timelines("amazon_reviews/gift_cards_2018_text", raw_path=folder, data_dir=folder / "data")


def written(table):
    """What the file says, in the order of the flat columns: by user, then the latest row first."""
    shown = ["a & b" if text == "a &amp; b" else text or "" for text in TEXTS * 3]
    return [shown[index] for user in range(3) for index in reversed(range(user, len(shown), 3))]


def test_reviews_are_those_of_the_file(table):
    assert table.has_reviews
    assert table.reviews(np.arange(len(table.item))) == written(table)
    assert table.reviews(np.array([4, 4, 0])) == [written(table)[place] for place in (4, 4, 0)]
    assert table.reviews(np.array([], int)) == []


def test_a_dataset_without_reviews_says_so(tmp_path):
    simulated = dict(num_users=3, num_items=50, mean_events=22)
    table = load_timelines("movielens/simulated", data_dir=tmp_path, simulated=simulated)
    assert not table.has_reviews
    with pytest.raises(ValueError, match="movielens/simulated' has no reviews"):
        table.reviews(np.array([0]))

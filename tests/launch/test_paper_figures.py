"""The paper's figures as data: read by eye from the paper, against the file."""

import csv
from collections import Counter, defaultdict
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "user_llm" / "launch" / "paper_figures.csv"
KEY = ("table", "dataset", "task", "row", "column", "metric")
LINES = {1: 6, 2: 27, 3: 9, 4: 13, 5: 32, 6: 9, 7: 36, 8: 32, 10: 12, 11: 36, 12: 36, 13: 180, 14: 64}
RECALL = ("recall@1", "recall@5", "recall@10")

PINNED = """
1|movielens|||Train examples|count|13821405
1|amazon_reviews|||Test examples|count|5756
2|amazon_reviews|next_item||Bert4Rec|recall@10|0.062
3|||# Tokens, TP|Len100|tokens|1350
3|||FLOPs reduction|Len200|ratio|78.1
4|google_local|review_generation||TP|rougeLsum|10.20
4|amazon_reviews|favorite_category||DualEnc|recall@1|0.855
5|google_local|review_generation||Enc|rougeLsum|11.76
6|movielens|favorite_category||+Perceiver Enc|recall@1|0.784
6|movielens||Tokens|+Perceiver|tokens|16
7|google_local|next_item||TP10|recall@5|0.060
8|amazon_reviews|next_item||cross-attention RD|recall@1|0.026
8|movielens|favorite_category||soft-prompt|recall@1|0.787
10|google_local|next_item||USER-LLM|recall@5|0.050
11|movielens|next_item||Unfrozen Len200 TP|recall@1|0.018
11|movielens|next_item||Frozen Len100 USER-LLM|recall@10|0.198
12|movielens|next_item||DE50TP10|recall@5|0.151
13|amazon_reviews|next_item||Proj RD|recall@10|0.0003
13|google_local|favorite_category||LoRA RD|recall@1|0.785
13|movielens|next_item||DualEnc Full PT|recall@5|0.142
14|movielens|next_item||soft-prompt Proj|recall@1|0.0025
14|amazon_reviews|review_generation||soft-prompt LoRA|rougeLsum|22.86
"""


@pytest.fixture(scope="module")
def lines():
    with FILE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def figures(lines):
    return {tuple(line[name] for name in KEY): line["value"] for line in lines}


@pytest.mark.parametrize("line", PINNED.split("\n")[1:-1])
def test_figure_is_the_papers(figures, line):
    *key, value = line.split("|")
    assert figures[tuple(key)] == value


def test_every_table_is_complete_and_no_cell_is_given_twice(lines, figures):
    assert tuple(lines[0]) == (*KEY, "value")
    assert Counter(int(line["table"]) for line in lines) == LINES
    assert len(figures) == len(lines)


def test_names_are_those_of_the_code(lines):
    assert {line["dataset"] for line in lines} == {"", "movielens", "google_local", "amazon_reviews"}
    assert {line["task"] for line in lines} == {"", "next_item", "favorite_category", "review_generation"}
    assert not any(line["task"] for line in lines if line["table"] in ("1", "3"))
    rouge = {line["metric"] == "rougeLsum" for line in lines if line["task"] == "review_generation"}
    assert rouge == {True}


def test_values_lie_where_their_metric_can(lines):
    upper = dict.fromkeys(RECALL, 1) | {"rougeLsum": 100, "count": 2e7, "tokens": 3000, "ratio": 100}
    for line in lines:
        assert 0 <= float(line["value"]) <= upper[line["metric"]], line
        assert line["metric"] not in ("count", "tokens") or line["value"].isdigit(), line


def test_recall_grows_with_k(figures):
    """Which a column or row read one off would hardly do."""
    cells = defaultdict(dict)
    for (*cell, metric), value in figures.items():
        if metric in RECALL:
            cells[tuple(cell)][metric] = float(value)
    assert sum(len(values) == 3 for values in cells.values()) == 9 + 12 + 4 + 12 + 12 + 54  # tables 2, 7, 10–13
    for cell, values in cells.items():
        found = [values[metric] for metric in RECALL if metric in values]
        assert found == sorted(found), cell


def test_flops_reduction_is_the_ratio_of_token_counts(figures):
    for length in ("Len50", "Len100", "Len200"):
        ours, theirs, ratio = (
            float(figures["3", "", "", row, length, metric])
            for row, metric in (
                ("# Tokens, USER-LLM", "tokens"),
                ("# Tokens, TP", "tokens"),
                ("FLOPs reduction", "ratio"),
            )
        )
        assert ratio == pytest.approx(theirs / ours, abs=0.05)

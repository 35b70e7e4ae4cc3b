"""Simulated Amazon and Google files: the published format, the same users as the simulated movies, telling reviews."""

import gzip
import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from tests.built import metadata_of
from user_llm.builders.amazon_reviews import Builder as Amazon
from user_llm.builders.google_local import Builder as Google
from user_llm.builders.simulated import SimulatedConfig
from user_llm.builders.simulated_json import write_amazon_json, write_google_json
from user_llm.builders.simulated_titles import GENRES, PLACE_KINDS, chain_names

CONFIG = SimulatedConfig(num_users=400, num_items=300, mean_events=40, seed=3)


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def amazon(tmp_path_factory):
    folder = tmp_path_factory.mktemp("amazon")
    write_amazon_json(CONFIG, folder)
    return read(folder / "Simulated_5.json.gz"), read(folder / "meta_Simulated.json.gz")


@pytest.fixture(scope="module")
def google(tmp_path_factory):
    folder = tmp_path_factory.mktemp("google")
    write_google_json(CONFIG, folder)
    return read(folder / "review-Simulated_10.json.gz"), read(folder / "meta-Simulated.json.gz")


def test_amazon_rows_have_the_format_of_2018(amazon):
    reviews, products = amazon
    keys = "overall verified reviewTime reviewerID asin reviewerName reviewText summary unixReviewTime"
    for row in reviews:
        assert list(row) == keys.split()
        assert row["overall"] in (1.0, 2.0, 3.0, 4.0, 5.0)
        assert row["unixReviewTime"] % 86_400 == 0
        assert re.fullmatch(r"\d\d \d\d, \d{4}", row["reviewTime"])
    pairs = Counter((row["reviewerID"], row["asin"]) for row in reviews)
    assert len(pairs) == 400 * 40
    assert 0 < sum(pairs.values()) - len(pairs) < 0.01 * len(pairs)
    assert all(len(row["category"]) >= 2 for row in products)
    described = {row["asin"] for row in products}
    assert 0 < len({row["asin"] for row in reviews} - described) < 0.02 * CONFIG.num_items
    assert any("&amp;" in row["title"] and "<span>" in row["title"] for row in products)
    assert any(not row["title"] for row in products)


def test_google_rows_have_the_format_of_2021(google):
    reviews, places = google
    for row in reviews:
        assert list(row) == ["user_id", "name", "time", "rating", "text", "pics", "resp", "gmap_id"]
        assert row["user_id"].isdecimal()
        assert row["time"] > 10**11
        assert row["rating"] in (1, 2, 3, 4, 5)
    keys = "name address gmap_id description latitude longitude category avg_rating num_of_reviews price hours MISC"
    assert list(places[0]) == [*keys.split(), "state", "relative_results", "url"]
    assert {"Open now", "Permanently closed"} == {row["state"] for row in places}
    assert any(row["category"] is None for row in places)
    assert {len(row["category"]) for row in places if row["category"]} == {1, 2}
    texts = [row["text"] for row in reviews]
    assert 0 < texts.count(None) < 0.05 * len(texts)
    translated = [text for text in texts if text and text.startswith("(Translated by Google) ")]
    assert 0 < len(translated) < 0.04 * len(texts)
    assert all(" (Original) " in text for text in translated)


@pytest.mark.parametrize("name", ["amazon", "google"])
def test_reviews_tell_their_writer_and_not_only_the_event(request, name):
    """Given rating and genre of an event, its writer's other reviews say more than everybody's reviews do."""
    reviews, items = request.getfixturevalue(name)
    user, item, stars, text = (
        ("reviewerID", "asin", "overall", "summary") if name == "amazon" else ("user_id", "gmap_id", "rating", "text")
    )
    fan_of = defaultdict(Counter)
    for row in reviews:
        if match := re.search(r"\b(?:says a|As a) ([\w -]+) fan", row[text] or ""):
            fan_of[row[user]][match[1]] += 1
    assert all(len(counts) == 1 for counts in fan_of.values())  # one word for each writer …
    assert len({next(iter(counts)) for counts in fan_of.values()}) > 10  # … and not the same for all
    key = "asin" if name == "amazon" else "gmap_id"
    place = 1 if name == "amazon" else 0  # a product's path begins with the store
    genre = {row[key]: row["category"][place].lower() for row in items if row["category"]}
    for writer, counts in list(fan_of.items())[:50]:
        met = Counter(genre[row[item]] for row in reviews if row[user] == writer and row[item] in genre)
        assert met[next(iter(counts))] >= 0.8 * max(met.values())  # it is what the history is full of
    mean = defaultdict(list)
    for row in reviews:
        mean[row[user]].append(row[stars])
    warnings = "Do not say you were not warned|Utter waste|Below any|Hardly worth|Tolerable|No complaints for once"
    grumpy = {row[user] for row in reviews if re.search(warnings, row[text] or "")}
    means = {writer: np.mean(values) for writer, values in mean.items()}
    others = [means[writer] for writer in means if writer not in grumpy]
    assert np.mean([means[writer] for writer in grumpy]) < np.mean(others) - 0.3  # ratings give the tone away


@pytest.mark.parametrize(("write", "names"), [(write_amazon_json, ".json.gz"), (write_google_json, ".json.gz")])
def test_the_same_config_writes_the_same_bytes(tmp_path, write, names):
    config = SimulatedConfig(num_users=5, num_items=60, mean_events=25)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(config, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.name.endswith(names)
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("builder", [Amazon, Google])
def test_it_builds_without_a_fault(builder, tmp_path):
    config = SimulatedConfig(num_users=40, num_items=200, mean_events=30)
    built = builder(config="simulated", data_dir=tmp_path, simulated=config)
    built.download_and_prepare()
    metadata = metadata_of(built)
    assert metadata["summary"]["events"] == 40 * 30
    assert metadata["has_reviews"]
    for rows in metadata["summary"]["files"].values():
        assert rows["rejected"] == {}
    known = {*(GENRES if builder is Amazon else PLACE_KINDS), "", "(no category)"}
    assert set(metadata["category_names"]) <= known


def test_names_of_chains_are_distinct_and_tell_their_kind():
    kinds = np.repeat(np.arange(len(PLACE_KINDS)), 60)
    names = chain_names(kinds, np.random.default_rng(0))
    assert len(set(names)) == len(names)
    words = [{name.split()[1] for name, of in zip(names, kinds, strict=True) if of == kind} for kind in set(kinds)]
    assert sum(map(len, words)) == len(set().union(*words))  # no kind's last word is another's

"""The Amazon builder, on the real files and on files in their format, against Python's json module."""

import ast
import gzip
import html
import json
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.built import ReadByTensorFlow, examples, metadata_of
from user_llm.builders.amazon_reviews import Builder
from user_llm.builders.amazon_reviews.format import RELEASES
from user_llm.builders.malformed import MalformedSourceError


class AmazonReviewsTest(ReadByTensorFlow, tfds.testing.DatasetBuilderTestCase):
    """TFDS's checks of a builder folder, over dummy_data/, which stands in for the manual folder."""

    DATASET_CLASS = Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ("gift_cards_2018", "gift_cards_2018_full_text", "baby_2014", "baby_2014_full")
    SPLITS = {"users": 4}  # noqa: RUF012
    SKIP_CHECKSUMS = True  # none are registered

    test_registered = None  # our builders are kept out of TFDS's registry


def review(user="U1", asin="B1", overall=5.0, time=1_500_000_000, **fields):
    row = {"overall": overall, "reviewerID": user, "asin": asin, "unixReviewTime": time}
    return {**row, "summary": "Fine", "reviewText": "Fine indeed.", **fields}


def product(asin="B1", title="One", category=("Cards", "Gifts")):
    return {"asin": asin, "title": title, "category": list(category)}


@pytest.fixture
def write(tmp_path):
    """Writes the two files of Gift_Cards (or of Baby, 2014); rows are objects, or lines as they are."""

    def lines(rows, dump):
        return "".join((row if isinstance(row, str) else dump(row)) + "\n" for row in rows).encode()

    def files(reviews, metadata=(), year=2018):
        names = ("Gift_Cards_5", "meta_Gift_Cards") if year == 2018 else ("reviews_Baby_5", "meta_Baby")
        folder = tmp_path / "release"
        folder.mkdir(exist_ok=True)
        (folder / f"{names[0]}.json.gz").write_bytes(gzip.compress(lines(reviews, json.dumps)))
        dump = json.dumps if year == 2018 else repr
        if metadata:
            (folder / f"{names[1]}.json.gz").write_bytes(gzip.compress(lines(metadata, dump)))
        return folder

    return files


def build(folder, config="gift_cards_2018", data_dir=None, **kwargs):
    builder = Builder(config=config, data_dir=data_dir or folder.parent / "data", raw_path=folder, **kwargs)
    builder.download_and_prepare()
    return builder


def timelines(builder):
    """user_id -> [(asin, stars, timestamp, review)]."""
    metadata = metadata_of(builder)
    found = {}
    for example in examples(builder):
        events = (example["events"][name].tolist() for name in ("item", "rating", "timestamp", "review"))
        found[example["user_id"].decode()] = [
            (metadata["raw_ids"][item], float(metadata["rating_names"][rating]), time, text.decode())
            for item, rating, time, text in zip(*events, strict=True)
        ]
    return found


def rules(builder, file):
    rows = builder.info.metadata["summary"]["files"][file]
    return {rule: row["rows"] for rule, row in rows["rules"].items()}, rows["read"], rows["kept"]


def clean(text):
    return re.sub(r"\s+", " ", re.sub(r"</?[a-zA-Z!][^<>]*>", " ", html.unescape(text or ""))).strip()


@pytest.mark.parametrize(("category", "read", "users"), [("gift_cards", 2_972, 458), ("all_beauty", 5_269, 991)])
def test_the_real_files(shared_dir, tmp_path, category, read, users):
    folder = shared_dir / "data" / "amazon_2018_5core"
    name = "Gift_Cards_5" if category == "gift_cards" else "All_Beauty_5"
    if not (folder / f"{name}.json.gz").exists():
        pytest.skip(f"{folder / name}.json.gz is absent: put the 5-core file of 2018 there")
    builder = build(folder, f"{category}_2018", tmp_path)
    with gzip.open(folder / f"{name}.json.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == read
    first = {}
    for line, row in enumerate(rows):
        key = row["reviewerID"], row["asin"]
        if key not in first or row["unixReviewTime"] < first[key][1]["unixReviewTime"]:
            first[key] = line, row
    expected = {}
    for line, row in first.values():
        event = row["asin"], row["overall"], row["unixReviewTime"], clean(row.get("summary"))
        expected.setdefault(row["reviewerID"], []).append((row["unixReviewTime"], line, event))
    found = timelines(builder)
    assert found == {user: [event for *_, event in sorted(events)] for user, events in expected.items()}
    assert list(found) == sorted(found)
    assert len(found) == users
    counted, file_rows, kept = rules(builder, f"{name}.json.gz")
    assert (file_rows, kept) == (read, len(first))
    assert counted["a later review of a product that its user has reviewed"] == read - len(first)


def test_the_real_catalogue(shared_dir, tmp_path):
    folder = shared_dir / "data" / "amazon_2018_5core"
    if not (folder / "meta_Gift_Cards.json.gz").exists():
        pytest.skip(f"{folder}/meta_Gift_Cards.json.gz is absent: put the metadata of 2018 there")
    metadata = metadata_of(build(folder, data_dir=tmp_path))
    with gzip.open(folder / "meta_Gift_Cards.json.gz", "rt", encoding="utf-8") as file:
        products = {row["asin"]: row for row in map(json.loads, file)}
    assert len(metadata["raw_ids"]) == 149
    assert metadata["raw_ids"] == sorted(metadata["raw_ids"])
    for asin, title, ids in zip(metadata["raw_ids"], metadata["titles"], metadata["item_categories"], strict=True):
        if asin:
            assert re.sub(r" \[[0-9]+]$", "", title) == clean(products[asin]["title"])
            path = products[asin]["category"]
            assert [metadata["category_names"][i] for i in ids] == (path[1:2] or ["(no category)"])
    assert set(metadata["category_names"]) == {"", "Gift Cards", "(no category)"}


def test_ties_keep_the_order_of_the_rows(write):
    day = [review(asin=f"B{n}", time=86_400 * (n // 7)) for n in np.random.default_rng(0).permutation(40).tolist()]
    in_order = sorted(range(40), key=lambda line: day[line]["unixReviewTime"])
    found = timelines(build(write(day)))["U1"]
    assert [asin for asin, *_ in found] == [day[line]["asin"] for line in in_order]


def test_rules_are_applied_and_counted(write):
    reviews = [
        review("U2", "B3", time=50),
        review("U1", "B1", time=200, summary="later"),
        review("U1", "B1", time=100, summary="first"),
        review("U1", "B1", time=100, summary="same time"),
        review("U1", "B2", summary=None),
        {key: value for key, value in review("U1", "B3").items() if key != "summary"},
        review("U1", "B4", summary="<b>Ben &amp; Jerry</b> <3  me &#34;x&#34;"),
        review("U1", "B5", time=150),
    ]
    metadata = [
        product("B1", "One &amp; <i>only</i>"),
        product("B1", "Another row"),
        product("B2", ""),
        product("B3", "var aPageStart = (new Date()).getTime();"),
        product("B4", None, ()),
        product("B9", "Nobody's"),
        product("B5", "Five", ("Cards", "x" * 61)),
    ]
    builder = build(write([*reviews, review("U1", "B6", time=99)], metadata))
    assert timelines(builder)["U1"] == [
        ("B6", 5.0, 99, "Fine"),
        ("B1", 5.0, 100, "first"),
        ("B5", 5.0, 150, "Fine"),
        ("B2", 5.0, 1_500_000_000, ""),
        ("B3", 5.0, 1_500_000_000, ""),
        ("B4", 5.0, 1_500_000_000, 'Ben & Jerry <3 me "x"'),
    ]
    found = metadata_of(builder)
    assert dict(zip(found["raw_ids"], found["titles"], strict=True)) == {
        "": "",
        "B1": "One & only",
        "B2": "B2",
        "B3": "B3",
        "B4": "B4",
        "B5": "Five",
        "B6": "B6",
    }
    names = [[found["category_names"][i] for i in ids] for ids in found["item_categories"]]
    assert names == [[], ["Gifts"], ["Gifts"], ["Gifts"], ["(no category)"], ["Cards"], ["(no category)"]]
    assert rules(builder, "Gift_Cards_5.json.gz") == (
        {
            "a later review of a product that its user has reviewed": 2,
            "an event without review, as summary is missing or empty": 2,
        },
        9,
        7,
    )
    assert rules(builder, "meta_Gift_Cards.json.gz") == (
        {
            "a second row of the same product": 1,
            "a product that nobody has reviewed": 1,
            "a reviewed product without a row: its asin is its title": 1,
            "a product without a title: its asin is its title": 3,
            "a product without a category: it gets '(no category)'": 1,
        },
        7,
        5,
    )


@pytest.mark.parametrize(("level", "name"), [(0, "Store"), (1, "Film"), (2, "Comedy"), (7, "Comedy")])
def test_the_level_of_the_category_is_an_option(write, level, name):
    folder = write([review()], [product(category=("Store", "Film", "Comedy"))])
    builder = build(folder, options={"category_level": level})
    assert metadata_of(builder)["category_names"] == ["", name]
    with pytest.raises(ValueError, match=r"was built with \{'category_level': .*Use another data_dir"):
        build(folder, options={"category_level": 5})
    with pytest.raises(ValueError, match="unknown option level: expected some of category_level"):
        Builder(config="gift_cards_2018", options={"level": 1})


def test_texts_keep_their_lines(write):
    text = "One &amp; <br/> two.  \r\n\r\n  Three <3 \n"
    builder = build(write([review(reviewText=text)]), "gift_cards_2018_text")
    assert timelines(builder)["U1"][0][-1] == "One & two.\nThree <3"


def test_without_metadata_there_are_no_categories(write, caplog):
    builder = build(write([review()]))
    assert metadata_of(builder)["titles"] == ["", "B1"]
    assert metadata_of(builder)["category_names"] == [""]
    assert "no metadata file" in caplog.text


def test_rows_of_2014_are_literals_and_never_evaluated(write, tmp_path, caplog):
    trap = tmp_path / "evaluated"
    metadata = [
        {"asin": "B1", "title": 'It\'s "One"', "categories": [["Baby", "Toys"], ["Gifts"]], "price": 1.5},
        {"asin": "B2", "categories": []},
        f"{{'asin': 'B3', 'title': open({str(trap)!r}, 'w').name}}",
        "{'asin': 'B4', 'title': 'unfinished",
        "['asin', 'B5']",
        "{'asin': ['B6']}",
        "{'asin': 'B7', 'categories': ['Baby']}",
    ]
    folder = write([review(asin=f"B{n}") for n in (1, 2, 3)], metadata, year=2014)
    with pytest.raises(
        MalformedSourceError, match="not a Python literal of text, with a list of lists as categories: 5"
    ) as caught:
        build(folder, "baby_2014")
    assert "line 3: " in str(caught.value)
    builder = build(folder, "baby_2014", max_malformed=0.8)
    assert metadata_of(builder)["titles"] == ["", 'It\'s "One"', "B2", "B3"]
    names = metadata_of(builder)["category_names"]
    assert [[names[i] for i in ids] for ids in metadata_of(builder)["item_categories"]][1] == ["Toys"]
    assert not trap.exists()
    assert ast.literal_eval(repr(metadata[0])) == metadata[0]


FAULTS = {
    "not JSON": '{"overall": 5.0, ',
    "reviewerID is missing": review(user=""),
    "asin is missing": review(asin=None),
    "overall is not 1, 2, 3, 4 or 5": review(overall=4.5),
    "unixReviewTime is not in whole seconds from 1970 to 2100": review(time=1_500_000_000_000),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_faults_are_named_with_their_line(write, tmp_path, reason):
    folder = write([review(), FAULTS[reason], review("U2")])
    with pytest.raises(MalformedSourceError, match=re.escape(reason) + r": 1\n\s+Gift_Cards_5\.json\.gz line 2: "):
        build(folder)
    assert not list((tmp_path / "data").rglob("*.array_record*"))
    builder = build(folder, max_malformed=0.4)
    assert list(timelines(builder)) == ["U1", "U2"]


def test_configs_are_those_of_the_releases():
    names = set(Builder.builder_configs)
    assert {"movies_and_tv_2018", "gift_cards_2018_full_text", "baby_2014", "amazon_instant_video_2014_text"} <= names
    assert len(names) == 1 + 4 * sum(len(release.categories) for release in RELEASES)
    builder = Builder(config="movies_and_tv_2018_full")
    assert list(builder._urls()) == ["Movies_and_TV.json.gz", "meta_Movies_and_TV.json.gz"]
    assert next(iter(Builder(config="movies_and_tv_2014")._urls())) == "reviews_Movies_and_TV_5.json.gz"

"""The Google Local builder, on files in the published format, against plain Python."""

import gzip
import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.built import ReadByTensorFlow, examples, metadata_of
from user_llm.builders.google_local import Builder
from user_llm.builders.malformed import MalformedSourceError

DUMMY = Path(Builder.code_path).parent / "dummy_data"
META, REVIEWS = "meta-New_York.json.gz", "review-New_York_10.json.gz"
TRANSLATED = "(Translated by Google) Good soup\n\n(Original)\nBuena sopa"


class GoogleLocalTest(ReadByTensorFlow, tfds.testing.DatasetBuilderTestCase):
    """TFDS's checks of a builder folder, over dummy_data/, which stands in for the manual folder."""

    DATASET_CLASS = Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ("new_york",)
    SPLITS = {"users": 3}  # noqa: RUF012
    SKIP_CHECKSUMS = True  # none are registered

    test_registered = None  # our builders are kept out of TFDS's registry


def _place(gmap_id: str | None, name: str | None, category: list[str] | None, state: str | None = "Open now") -> dict:
    return {
        "name": name,
        "address": f"{name}, 1 Main St, New York, NY 10001",
        "gmap_id": gmap_id,
        "description": None,
        "latitude": 40.7,
        "longitude": -73.9,
        "category": category,
        "avg_rating": 4.2,
        "num_of_reviews": 3,
        "price": "$$",
        "hours": [["Thursday", "8AM-5PM"]],
        "MISC": {"Accessibility": ["Wheelchair accessible entrance"]},
        "state": state,
        "relative_results": ["0x1:0x2"],
        "url": "https://www.google.com/maps/place//data=!4m2",
    }


def _review(user_id: object, gmap_id: object, time: object, rating: object = 5, text: str | None = None) -> dict:
    return {
        "user_id": user_id,
        "name": "A Name",
        "time": time,
        "rating": rating,
        "text": text,
        "pics": [{"url": ["https://lh5.googleusercontent.com/p/x"]}],
        "resp": {"time": 1_600_000_000_000, "text": "Thank you"},
        "gmap_id": gmap_id,
    }


def _write(folder: Path, places: list[dict | str], reviews: list[dict | str], names: tuple[str, str] = (META, REVIEWS)):
    folder.mkdir(exist_ok=True)
    for name, rows in zip(names, (places, reviews), strict=True):
        lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / name).write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    return folder


def _build(tmp_path: Path, places: list, reviews: list, **kwargs) -> Builder:
    folder = _write(tmp_path / "raw", places, reviews)
    builder = Builder(config="new_york", raw_path=folder, data_dir=tmp_path / "data", **kwargs)
    builder.download_and_prepare()
    return builder


def _read(builder: Builder) -> dict[str, list[tuple]]:
    """user_id -> [(gmap_id, rating, timestamp, text)], in the dataset's order."""
    raw_ids = metadata_of(builder)["raw_ids"]
    timelines = {}
    for example in examples(builder):
        events = example["events"]
        timelines[example["user_id"].decode()] = [
            (raw_ids[item], int(rating), int(timestamp), review.decode())
            for item, rating, timestamp, review in zip(
                events["item"], events["rating"], events["timestamp"], events["review"], strict=True
            )
        ]
    return timelines


def _rules(builder: Builder, file: str) -> dict[str, tuple[int, bool]]:
    rules = builder.info.metadata["summary"]["files"][file]["rules"]
    return {rule: (applied["rows"], applied["dropped"]) for rule, applied in rules.items()}


def test_timelines_equal_a_sort_in_python(tmp_path):
    rng = np.random.default_rng(0)
    users = [str(10**20 + int(user)) for user in rng.integers(10**9, size=20)]
    places = [f"0x{place:x}:0x{place * 7:x}" for place in range(1, 31)]
    texts = [None, "", "Fine.", TRANSLATED, 'Tabs\t"quotes" 漢字 😀']
    reviews = [
        _review(
            users[rng.integers(20)],
            places[rng.integers(30)],
            1_600_000_000_000 + int(rng.integers(60_000)),  # within a minute: many equal seconds
            int(rng.integers(1, 6)),
            texts[rng.integers(5)],
        )
        for _ in range(2_000)
    ]
    reviews += [{**review, "text": "again", "rating": 1} for review in reviews[:50]]
    built = _build(tmp_path, [_place(place, f"Place {place}", ["Park"]) for place in places], reviews)

    expected, seen = {}, set()
    for review in reviews:
        key = review["user_id"], review["gmap_id"], review["time"]
        if key not in seen:
            seen.add(key)
            expected.setdefault(review["user_id"], []).append(review)
    expected = {
        user: [
            (review["gmap_id"], review["rating"], review["time"] // 1000, review["text"] or "")
            for review in sorted(expected[user], key=lambda review: review["time"])
        ]
        for user in sorted(expected)
    }
    timelines = _read(built)
    assert timelines == expected
    assert list(timelines) == list(expected)
    assert _rules(built, REVIEWS) == {"user, place and time of an earlier row": (2_050 - len(seen), True)}
    assert built.info.metadata["rating_names"] == ["", "1", "2", "3", "4", "5"]
    assert built.info.metadata["has_reviews"]


def test_catalogue_and_its_rules(tmp_path):
    places = [
        _place("c", " Corner\n Coffee ", ["Coffee shop", "Café", "Coffee shop", " "]),
        _place("x", "Never Reviewed", ["Park"]),
        _place("b", "Old Diner", ["Diner"], "Permanently closed"),
        _place("c", "Renamed", ["Tea house"]),
        _place("n", None, None, None),
        _place("e", " ", [], "Temporarily closed"),
    ]
    reviews = [_review("1", place, 1_000_000) for place in "bcnez"] + [_review("2", "y", 1, None)]
    reviews += [_review("2", "z", 1_000), _review("2", "a", 2_000)]
    built = _build(tmp_path, places, reviews)
    metadata = metadata_of(built)
    assert metadata["raw_ids"] == ["", "c", "b", "n", "e", "a", "z"]
    assert metadata["titles"] == ["", "Corner Coffee", "Old Diner", "n", "e", "a", "z"]
    assert metadata["category_names"] == ["", "(no category)", "Café", "Coffee shop", "Diner"]
    assert metadata["item_categories"] == [[], [3, 2], [4], [1], [1], [1], [1]]
    assert _rules(built, META) == {
        "a place of an earlier row": (1, True),
        "no review of the place": (1, True),
        "permanently closed": (1, False),
        "no name: its gmap_id stands for it": (2, False),
        "no category: it is in (no category)": (2, False),
    }
    assert _rules(built, REVIEWS) == {
        "no rating": (1, True),
        "the place is in no metadata: its gmap_id is its title, (no category)": (3, False),
    }
    files = metadata["summary"]["files"]
    assert (files[META]["read"], files[META]["kept"]) == (6, 4)
    assert (files[REVIEWS]["read"], files[REVIEWS]["kept"]) == (8, 7)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (_review(None, "a", 1), "user_id is empty"),
        (_review("", "a", 1), "user_id is empty"),
        (_review("1", None, 1), "gmap_id is empty"),
        (_review(["1"], "a", 5_000), "user_id is not text or a whole number"),
        (_review("1", {"a": 1}, 5_000), "gmap_id is not text or a whole number"),
        (_review("1\x1b", "a", 5_000), "a control character in user_id or gmap_id"),
        (_review("1", "a", None), "time is not a whole number"),
        (_review("1", "a", "2021-01-01"), "time is not a whole number"),
        (_review("1", "a", 1.5), "time is not a whole number"),
        (_review("1", "a", -1), "time is not a whole number"),
        (_review("1", "a", 4_102_444_800_001), "time is not in milliseconds from 1970 to 2100"),
        (_review("1", "a", 1, 0), "rating is not one of 1, 2, 3, 4, 5"),
        (_review("1", "a", 1, 6), "rating is not one of 1, 2, 3, 4, 5"),
        (_review("1", "a", 1, 4.5), "rating is not one of 1, 2, 3, 4, 5"),
        (_review("1", "a", 1, "good"), "rating is not one of 1, 2, 3, 4, 5"),
        ('{"user_id": "1", ', "not JSON"),
        ("[]", "not a JSON object"),
    ],
)
def test_malformed_review_is_named_with_its_line(tmp_path, row, reason):
    good = [_review("1", "a", "5000", "4.0", "As text"), _review("2", "a", 6_000)]
    with pytest.raises(MalformedSourceError) as raised:
        _build(tmp_path, [_place("a", "A", ["Park"])], [good[0], row, good[1]])
    assert f"{REVIEWS}: 3 rows read, 2 kept, 1 rejected\n  {reason}: 1\n    {REVIEWS} line 2: " in str(raised.value)
    assert not list((tmp_path / "data").rglob("*.array_record*"))
    built = _build(tmp_path, [_place("a", "A", ["Park"])], [good[0], row, good[1]], max_malformed=0.4)
    assert _read(built) == {"1": [("a", 4, 5, "As text")], "2": [("a", 5, 6, "")]}


def test_place_without_id_is_malformed(tmp_path):
    with pytest.raises(MalformedSourceError, match=rf"gmap_id is empty: 1\n    {META} line 2: name=B"):
        _build(tmp_path, [_place("a", "A", ["Park"]), _place(None, "B", ["Park"])], [_review("1", "a", 1)])


def test_truncated_file_stops_the_build(tmp_path):
    folder = _write(tmp_path / "raw", [_place("a", "A", ["Park"])], [_review("1", "a", n) for n in range(2_000)])
    packed = (folder / REVIEWS).read_bytes()
    (folder / REVIEWS).write_bytes(packed[: len(packed) // 2])
    with pytest.raises(MalformedSourceError, match=f"{REVIEWS} is truncated or damaged after line"):
        Builder(config="new_york", raw_path=folder, data_dir=tmp_path / "data").download_and_prepare()


def test_configs_are_the_states_with_and_without_core(tmp_path):
    names = set(Builder.builder_configs)
    assert len(names - {"simulated"}) == 2 * (50 + 2)
    assert {"new_york", "new_york_full", "district_of_columbia", "other_full"} <= names
    assert Builder(data_dir=tmp_path).builder_config.name == "new_york"
    with mock.patch.object(tfds.download.DownloadManager, "download", side_effect=OSError("no route")) as download:
        builder = Builder(config="west_virginia_full", data_dir=tmp_path)
        with pytest.raises(ConnectionError, match="give raw_path"):
            builder.download_and_prepare()
    (url,) = download.call_args.args
    assert url == "https://mcauleylab.ucsd.edu/public_datasets/gdrive/googlelocal/meta-West_Virginia.json.gz"
    assert builder._files() == ("meta-West_Virginia.json.gz", "review-West_Virginia.json.gz")


def test_downloaded_files_go_by_their_published_names(tmp_path):
    def download(self, url):
        name = url.rsplit("/", 1)[1]
        return shutil.copy(DUMMY / name, tmp_path / f"{hash(name)}.gz")

    with mock.patch.object(tfds.download.DownloadManager, "download", download):
        builder = Builder(config="new_york", data_dir=tmp_path / "data")
        builder.download_and_prepare()
    assert list(builder.info.metadata["summary"]["files"]) == [META, REVIEWS]
    assert _read(builder)["101463350189962023774"] == [
        ("0x89c259a8669c0f0d:0x25d4109319b4f5a0", 5, 1529193600, ""),
        ("0x89c25a177d4bf5db:0x84e51f23e8c0a75c", 4, 1529193600, TRANSLATED),
    ]


def test_simulated_dataset_goes_through_the_same_builder(tmp_path):
    settings = {"num_users": 40, "num_items": 80, "mean_events": 25}
    builder = Builder(config="simulated", data_dir=tmp_path, simulated=settings)
    builder.download_and_prepare()
    metadata = metadata_of(builder)
    summary = metadata["summary"]
    assert summary["events"] == 1000
    assert summary["users"] == 40
    assert not any(file["rejected"] for file in summary["files"].values())
    assert metadata["has_reviews"]
    assert len(metadata["category_names"]) > 2

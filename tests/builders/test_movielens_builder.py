"""The MovieLens builder: TFDS's own checks, the real file against Python's csv module, and what it refuses to do."""

import csv
import io
import shutil
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.built import ReadByTensorFlow, examples, metadata_of
from user_llm.builders.movielens import Builder

RELEASES = ("ml-20m", "ml-25m", "ml-1m", "ml-latest-small")


class MovieLensTest(ReadByTensorFlow, tfds.testing.DatasetBuilderTestCase):
    """TFDS's checks of a builder folder, over dummy_data/, which stands in for the manual folder."""

    DATASET_CLASS = Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ("20m", "25m", "1m", "latest_small")
    SPLITS = {"users": 4}  # noqa: RUF012


def _build(data_dir: Path, raw_path: Path, config: str = "latest_small", **kwargs) -> Builder:
    builder = Builder(config=config, data_dir=data_dir, raw_path=raw_path, **kwargs)
    builder.download_and_prepare()
    return builder


def _read(builder: Builder) -> dict[str, list[tuple[int, int, int]]]:
    """user_id -> [(item, rating, timestamp)], in the dataset's order."""
    return {
        example["user_id"].decode(): list(
            zip(*(list(map(int, example["events"][name])) for name in ("item", "rating", "timestamp")), strict=True)
        )
        for example in examples(builder)
    }


def _zip(folder: Path, path: Path, prefix: str = "ml-latest-small/") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, prefix + file.name)
    return path


@pytest.fixture(scope="module")
def real_zip(shared_dir):
    path = shared_dir / "data" / "ml-latest-small.zip"
    if not path.exists():
        pytest.skip(f"{path} is absent: put MovieLens latest-small there")
    return path


@pytest.fixture(scope="module")
def real(real_zip, tmp_path_factory):
    return _build(tmp_path_factory.mktemp("real"), real_zip)


def test_real_timelines_equal_a_sort_in_python(real, real_zip):
    def rows(name):
        with zipfile.ZipFile(real_zip) as archive:
            return list(csv.DictReader(io.StringIO(archive.read(f"ml-latest-small/{name}").decode())))

    item_of = {row["movieId"]: i for i, row in enumerate(rows("movies.csv"), start=1)}
    expected = {}
    for row in rows("ratings.csv"):
        event = (item_of[row["movieId"]], int(2 * float(row["rating"])), int(row["timestamp"]))
        expected.setdefault(row["userId"], []).append(event)
    for events in expected.values():
        events.sort(key=lambda event: event[2])
    built = _read(real)
    assert built == expected
    assert list(built) == [str(user) for user in range(1, 611)]


def test_real_catalogue_and_counts(real, real_zip):
    metadata = metadata_of(real)
    with zipfile.ZipFile(real_zip) as archive:
        movies = list(csv.DictReader(io.StringIO(archive.read("ml-latest-small/movies.csv").decode())))
    numbered = [title for title in metadata["titles"] if title.endswith("[2]")]
    assert len(numbered) == metadata["duplicates"] == 5
    titles = [title.removesuffix(" [2]") for title in metadata["titles"]]
    assert titles == ["", *(movie["title"].strip() for movie in movies)]
    assert metadata["raw_ids"] == ["", *(movie["movieId"] for movie in movies)]
    names = metadata["category_names"]
    assert names[0] == ""
    assert len(names) == 1 + 20
    genres = ["|".join(names[i] for i in ids) for ids in metadata["item_categories"]]
    assert genres == ["", *(movie["genres"] for movie in movies)]
    assert metadata["rating_names"] == ["", *(f"{n / 2:.1f}" for n in range(1, 11))]
    summary = metadata["summary"]
    assert (summary["events"], summary["users"], summary["items"]) == (100_836, 610, 9_742)
    published = {20: (596, 88_040), 50: (378, 74_184), 100: (245, 59_268), 200: (133, 41_551)}
    for history_length, (users, train) in published.items():
        windows = summary["windows"][str(history_length)]
        assert (windows["users"], windows["train"], windows["test"]) == (users, train, users)


def test_dataset_is_readable_without_our_code(real):
    builder = tfds.builder_from_directory(real.data_dir)
    assert type(builder.info.features["events"]) is tfds.features.Sequence
    assert _read(builder) == _read(real)


def test_row_order_changes_nothing_but_ties(tmp_path, write_release):
    rng = np.random.default_rng(0)
    distinct = [f"{user},{10 * (1 + n % 6)},4.0,{1000 + n}" for user in (2, 10, 1) for n in range(30)]
    tied = [f"{user},{10 * (1 + n)},3.0,5000" for user in (1, 2, 10) for n in range(6)]
    header = "userId,movieId,rating,timestamp"
    built = []
    for n in range(2):
        distinct = [distinct[i] for i in rng.permutation(len(distinct))]
        tied = [tied[i] for i in rng.permutation(len(tied))]
        mixed = [distinct[0], *tied, *distinct[1:]]
        built.append(_read(_build(tmp_path / str(n), write_release(ratings=[header, *mixed]))))
        for user, events in built[-1].items():
            in_file = [int(row.split(",")[1]) // 10 for row in tied if row.split(",")[0] == user]
            assert [item for item, _, timestamp in events if timestamp == 5000] == in_file
    first, second = ({user: events[:-6] for user, events in users.items()} for users in built)
    assert first == second
    assert list(first) == ["1", "2", "10"]


def test_zip_and_folder_of_the_same_files_are_the_same_source(tmp_path, write_release):
    folder = write_release()
    packed = _zip(folder, tmp_path / "packed.zip")
    repacked = _zip(folder, tmp_path / "repacked.zip", prefix="other/")
    sources = (folder, folder.parent, packed, repacked)
    builders = [_build(tmp_path / "data" / str(n), source) for n, source in enumerate(sources)]
    assert len({builder.info.metadata["fingerprint"] for builder in builders}) == 1
    assert all(_read(builder) == _read(builders[0]) for builder in builders)
    _build(tmp_path / "data" / "0", repacked)  # the same content: nothing to object to


def test_same_name_from_other_data_is_refused(tmp_path, write_release):
    _build(tmp_path / "data", write_release())
    ratings = ["userId,movieId,rating,timestamp", "1,10,4.0,1000"]
    with pytest.raises(ValueError, match="built from other data"):
        _build(tmp_path / "data", write_release(ratings=ratings))


def test_more_rejected_rows_than_allowed_now_are_refused(tmp_path, write_release):
    ratings = ["userId,movieId,rating,timestamp", "1,10,4.0,1000", "1,20,4.0"]
    folder = write_release(ratings=ratings)
    _build(tmp_path / "data", folder, max_malformed=0.5)
    with pytest.raises(ValueError, match=r"without 1 malformed rows of ratings.csv"):
        _build(tmp_path / "data", folder)


def test_other_simulation_is_refused(tmp_path):
    def build(seed):
        settings = {"num_users": 5, "num_items": 60, "mean_events": 22, "seed": seed}
        builder = Builder(config="simulated", data_dir=tmp_path, simulated=settings)
        builder.download_and_prepare()
        return builder

    assert build(1).info.metadata["summary"]["users"] == 5
    build(1)
    with pytest.raises(ValueError, match="'seed': 1"):
        build(2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_malformed": 1.0}, "max_malformed must be"),
        ({"max_malformed": -0.1}, "max_malformed must be"),
        ({"simulated": {"seed": 1}}, "belongs to config 'simulated'"),
        ({"config": "simulated", "raw_path": "x.zip"}, "leave raw_path out"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        Builder(**{"config": "latest_small", "data_dir": tmp_path, **kwargs})


@pytest.mark.parametrize("config", [config for config in Builder.BUILDER_CONFIGS if config.release])
def test_downloads_the_published_zip_and_knows_its_checksum(tmp_path, config):
    dummy = Path(Builder.code_path).parent / "dummy_data" / config.release
    packed = _zip(dummy, tmp_path / "downloaded.zip", prefix=f"{config.release}/")
    with mock.patch.object(tfds.download.DownloadManager, "download", return_value=packed) as download:
        builder = Builder(config=config.name, data_dir=tmp_path / "data")
        builder.download_and_prepare()
    (url,) = download.call_args.args
    assert url.endswith(f"/{config.release}.zip")
    assert len(Builder.url_infos[url].checksum) == 64
    assert len(_read(builder)) == 4


def test_download_that_fails_says_what_to_do(tmp_path):
    no_route = mock.patch.object(tfds.download.DownloadManager, "download", side_effect=OSError("no route"))
    with no_route, pytest.raises(ConnectionError, match="give raw_path"):
        Builder(config="1m", data_dir=tmp_path).download_and_prepare()


def test_manual_folder_comes_before_a_download(tmp_path):
    shutil.copytree(Path(Builder.code_path).parent / "dummy_data" / "ml-1m", tmp_path / "manual" / "ml-1m")
    builder = Builder(config="1m", data_dir=tmp_path / "data")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / "manual"))
    assert "City of Lost Children, The (Cité des enfants perdus, La) (1995)" in metadata_of(builder)["titles"]
    assert builder.info.metadata["rating_names"] == ["", "1", "2", "3", "4", "5"]
    assert _read(builder)["1"] == [(2, 3, 964982224), (1, 4, 964982703), (6, 5, 964982703)]


def test_build_leaves_only_the_dataset(tmp_path, write_release):
    builder = _build(tmp_path / "data", write_release())
    names = {path.name for path in Path(builder.data_dir).iterdir()}
    records, columns = "movielens-users.array_record-00000-of-00001", {"catalogue", "columns"}
    assert names == {"dataset_info.json", "features.json", "metadata.json", records, *columns, "checksums.json"}

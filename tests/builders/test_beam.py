"""Apache Beam builds the dataset that DuckDB builds, byte for byte: run by `make test` in the environment of Beam.

`test_many_workers.py` has the same work done by a plain loop, over spoilt files, in the project's own environment.
"""

import json
import logging
from pathlib import Path

import pytest

pytest.importorskip("apache_beam", reason="apache_beam lives in an environment of its own: make beam")

from user_llm.builders import build
from user_llm.builders.beam import on_beam

SMALL = on_beam.Sizes(piece_bytes=50_000, group_rows=2_000, sample_every=16)
IN_PROCESS = "runner=DirectRunner,direct_running_mode=in_memory"
WORKERS = "runner=DirectRunner,direct_running_mode=multi_processing,direct_num_workers=3"


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Several pieces and groups of few rows; Beam's workers say a lot."""
    monkeypatch.setattr(on_beam, "SIZES", SMALL)
    monkeypatch.setattr(build.logging, "basicConfig", lambda **_: None)
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """File → content of a dataset, the records joined whatever their shards; checksums say only what the files hold."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if "array_record" in name:
            from array_record.python import array_record_module as records

            reader = records.ArrayRecordReader(str(path))
            files["records"] = files.get("records", b"") + b"".join(reader.read(list(range(reader.num_records()))))
        elif path.name not in ("checksums.json", ".owner.json", ".lock"):
            files[name] = path.read_bytes()
            if path.name == "dataset_info.json":
                info = json.loads(files[name])
                (split,) = info["splits"]
                files[name] = json.dumps({**info, "splits": sum(map(int, split["shardLengths"]))}).encode()
    return files


def build_both(tmp_path: Path, options: str, dataset: str, *arguments: str) -> dict[str, bytes]:
    """Builds a dataset by both engines; returns what is in it."""
    engines = {"duckdb": [], "beam": ["--engine=beam", f"--beam_options={options}"]}
    for engine, flags in engines.items():
        status = build.main([dataset, f"--data_dir={tmp_path / engine}", *arguments, *flags])
        assert status == 0
    duckdb, beam = (bytes_of(tmp_path / engine) for engine in engines)
    assert beam.keys() == duckdb.keys()
    assert [name for name in duckdb if beam[name] != duckdb[name]] == []
    return beam


def test_movielens(tmp_path):
    found = build_both(tmp_path, IN_PROCESS, "movielens/simulated", "--simulated", "num_users=200")
    assert len(found["movielens/simulated/2.0.0/columns/item.npy"]) > 4 * 200 * 21
    assert not list(tmp_path.rglob("work"))


def test_a_malformed_row_is_named_and_nothing_is_left(tmp_path, capsys):
    rows = tmp_path / "rows.csv"
    rows.write_text("user,item,timestamp\n" + "a,b,5\n" * 20_000 + "a,b\n")
    arguments = ["custom/x", f"--data_dir={tmp_path / 'data'}", "--files", str(rows), "--engine=beam"]
    columns = ["--columns", "user=user", "item=item", "timestamp=timestamp", f"--beam_options={IN_PROCESS}"]
    assert build.main([*arguments, *columns]) == 1
    assert "rows.csv line 20002: 2 in 'a,b'" in capsys.readouterr().err
    assert not list((tmp_path / "data").rglob("*.npy"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("runner=DataflowRunner", "Missing required option: region"),
        ("runner=DataflowRunner,project=a-project", "Missing GCS path option: temp_location"),
        ("runner=DataflowRunner,region=europe-west4", "Missing sdk_container_image"),
        ("runner=Spaceship", "runner=Spaceship cannot be had"),
        ("direct_num_worker=2,nonsense=1", "no option direct_num_worker, nonsense"),
        ("direct_num_workers=many", "Beam cannot read it"),
    ],
)
def test_a_dry_run_says_what_beam_lacks(tmp_path, capsys, options, message):
    arguments = ["movielens/20m", f"--data_dir={tmp_path}", "--engine=beam", "--dry_run", f"--beam_options={options}"]
    assert build.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_dry_run_of_dataflow_passes_with_all_that_it_needs(tmp_path, capsys):
    options = {
        "runner": "DataflowRunner",
        "project": "a-project",
        "region": "europe-west4",
        "temp_location": "gs://a-bucket/temp",
        "staging_location": "gs://a-bucket/staging",
        "sdk_container_image": "europe-docker.pkg.dev/a-project/images/user-llm",
    }
    text = ",".join(f"{name}={value}" for name, value in options.items())
    arguments = ["movielens/20m", f"--data_dir={tmp_path}", "--engine=beam", "--dry_run", f"--beam_options={text}"]
    assert build.main(arguments) == 0
    assert "runner=DataflowRunner, project=a-project" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.drill
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dataset", ["movielens/simulated", "amazon_reviews/simulated", "google_local/simulated"])
def test_several_workers(tmp_path, dataset):
    found = build_both(tmp_path, WORKERS, dataset, "--simulated", "num_users=2000")
    assert len(found["records"]) > 2000 * 21 * 4


@pytest.mark.drill
@pytest.mark.timeout(1800)
def test_several_workers_build_files_of_ones_own(tmp_path):
    files = []
    for number in range(2):
        files.append(tmp_path / f"part{number}.csv")
        rows = (f"u{row % 700 + number},i{row * row % 97},{row // 3},{row % 5}\n" for row in range(20_000))
        files[-1].write_text("user,item,timestamp,rating\n" + "".join(rows))
    columns = ["user=user", "item=item", "timestamp=timestamp", "rating=rating"]
    arguments = ["--files", *map(str, files), "--columns", *columns]
    found = build_both(tmp_path / "data", WORKERS, "custom/mine", *arguments)
    assert len(found["records"]) > 40_000 * 4

"""`user-llm build`: builds, says what went in, and turns bad input into a message and status 1."""

import sys

import pytest
import tensorflow_datasets as tfds

from tests.built import metadata_of
from user_llm.builders import build


def test_builds_and_prints_the_summary(tmp_path, write_release, capsys):
    folder = write_release(ratings=["userId,movieId,rating,timestamp", "1,10,4.0,1000", "1,20,x,1001"])
    arguments = ["movielens/latest_small", f"--raw_path={folder}", f"--data_dir={tmp_path / 'data'}"]
    assert build.main([*arguments, "--max_malformed=0.5"]) == 0
    printed = capsys.readouterr().out
    assert "ratings.csv: 2 rows read, 1 kept\n  left out, rating is not a number: 1" in printed
    assert "1 users, 1 events, 6 items (1 with events)" in printed
    assert (tmp_path / "data" / "movielens" / "latest_small").is_dir()


def test_simulates(tmp_path, capsys):
    settings = ["num_users=3", "num_items=70", "mean_events=22.5", "min_events=21"]
    assert build.main(["movielens/simulated", "--data_dir", str(tmp_path), "--simulated", *settings]) == 0
    assert "3 users, 68 events, 70 items" in capsys.readouterr().out


def test_manual_folder(tmp_path, write_release, capsys):
    write_release().rename(tmp_path / "ml-latest-small")
    arguments = ["movielens/latest_small", f"--data_dir={tmp_path / 'data'}", f"--manual_dir={tmp_path}"]
    assert build.main(arguments) == 0
    assert "3 users, 12 events" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["movielens/latest_small", "--raw_path=nowhere.zip"], "nowhere.zip does not exist"),
        (["movielens/simulated", "--simulated", "users=5"], "with a name of num_users, "),
        (["movielens/simulated", "--simulated", "seed=x"], "'x' is not of type int"),
        (["movielens/simulated", "--max_malformed=2"], "max_malformed must be"),
    ],
)
def test_bad_input_is_one_message_and_status_1(tmp_path, capsys, arguments, message):
    assert build.main([*arguments, f"--data_dir={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {arguments[0]} was not built: ")
    assert message in error


def test_a_dry_run_builds_nothing(tmp_path, capsys):
    assert build.main(["movielens/simulated", f"--data_dir={tmp_path}", "--dry_run"]) == 0
    assert "engine: duckdb, on this machine" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_options_of_another_engine_are_refused(tmp_path, capsys):
    assert build.main(["movielens/simulated", f"--data_dir={tmp_path}", "--beam_options=runner=DirectRunner"]) == 1
    assert "--beam_options belongs to --engine=beam" in capsys.readouterr().err


def test_beam_that_is_not_installed_is_named_with_the_way_to_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "user_llm.builders.beam.runner", raising=False)
    assert build.main(["movielens/simulated", f"--data_dir={tmp_path}", "--engine=beam"]) == 1
    assert "`make beam` makes .venv-beam" in capsys.readouterr().err


def test_unknown_dataset_names_those_near_it(tmp_path, capsys):
    assert build.main(["movielens/10m", f"--data_dir={tmp_path}"]) == 1
    assert "did you mean movielens/1m or movielens/20m" in capsys.readouterr().err


def test_custom_files(tmp_path, capsys):
    (tmp_path / "events.csv").write_text("who,what,when\nann,tea,2021-03-04\nann,mug,2021-03-05\n")
    arguments = ["custom/shop", f"--data_dir={tmp_path / 'data'}"]
    assert build.main(arguments) == 1
    assert "custom/shop is not in" in capsys.readouterr().err
    columns = ["--columns", "user=who", "item=what", "timestamp=when"]
    assert build.main([*arguments, "--files", str(tmp_path / "events.csv"), *columns]) == 0
    assert "1 users, 2 events, 2 items (2 with events)" in capsys.readouterr().out
    assert build.main(arguments) == 0  # by its name
    assert build.main(["movielens/1m", "--files", "x.csv", *columns]) == 1
    assert "files and columns of your own belong to custom/<name>, not to movielens/1m" in capsys.readouterr().err


def test_options_and_rules_of_a_dataset(tmp_path, capsys):
    arguments = ["amazon_reviews/simulated", f"--data_dir={tmp_path}", "--simulated", "num_users=20", "num_items=200"]
    assert build.main([*arguments, "mean_events=30", "--option", "category_level=0"]) == 0
    said = capsys.readouterr().out
    assert "left out by rule, a later review of a product that its user has reviewed: " in said
    assert "kept by rule, a product without a title: its asin is its title: 1" in said
    names = metadata_of(tfds.builder_from_directory(next(tmp_path.glob("amazon_reviews/simulated/[0-9]*"))))
    assert set(names["category_names"]) == {"", "Simulated", "(no category)"}
    assert names["options"] == {"category_level": 0}


@pytest.mark.parametrize(
    ("dataset", "option", "message"),
    [
        ("amazon_reviews/simulated", "level=2", "the options of this dataset: category_level"),
        ("amazon_reviews/simulated", "category_level=two", "'two' is not a whole number"),
        ("movielens/simulated", "category_level=2", "the options of this dataset: none"),
    ],
)
def test_an_unknown_option_is_refused(tmp_path, capsys, dataset, option, message):
    assert build.main([dataset, f"--data_dir={tmp_path}", "--option", option]) == 1
    assert message in capsys.readouterr().err

"""The report says what was measured, the same bytes for the same run, and leaves no half file."""

import importlib.util
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from user_llm.evaluation import report
from user_llm.evaluation.metrics import METRICS, compare, ranking_metrics, summarise

RANKS = {"popularity": np.array([3.0, np.inf, 40.0]), "User-LLM": np.array([1.0, 2.0, np.inf])}
VALUES = {name: ranking_metrics(ranks) for name, ranks in RANKS.items()}
ROWS = {name: summarise(values, samples=20) for name, values in VALUES.items()}
COMPARISONS = {"User-LLM - popularity": compare(VALUES["User-LLM"], VALUES["popularity"], samples=20)}


def printed(width: int = 120) -> str:
    stream = io.StringIO()
    report.print_table(ROWS, title="Three users", console=Console(file=stream, width=width))
    return stream.getvalue()


def test_the_table_holds_every_row_metric_and_value():
    text = printed()
    for expected in [*ROWS, *METRICS, "Three users"]:
        assert expected in text
    for row in ROWS.values():
        for interval in row.values():
            half = (interval["high"] - interval["low"]) / 2
            assert f"{interval['value']:.3f} ±{half:.3f}" in text


def test_numbers_are_whole_on_a_narrow_terminal():
    assert "…" not in printed(width=80)


def test_samples_are_printed_in_full():
    stream = io.StringIO()
    sample = {"prompt": "Write a review for Cube", "truth": "Dark.", "personalised": "Darker.", "unpersonalised": "Ok"}
    report.print_samples([sample], console=Console(file=stream, width=120))
    for text in (*sample, *sample.values()):
        assert text in stream.getvalue()


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.1, 0.3, "ahead"), (-0.3, -0.1, "behind"), (-0.1, 0.1, "within noise")]
)
@pytest.mark.parametrize("metric", ["recall@10", "rougeLsum"])
def test_comparisons_are_told_in_the_task_s_metric(metric, low, high, verdict, capsys):
    row = {"other": {"value": 9.0, "low": 9.0, "high": 9.0}, metric: {"value": 0.0, "low": low, "high": high}}
    report.print_comparisons({"User-LLM - LLM": row}, metric)
    said = capsys.readouterr().out
    assert f"{metric}  User-LLM - LLM: +0.000" in said
    assert said.strip().endswith(verdict)


def write(folder):
    protocol = {"users": 3, "rows": ROWS, "comparisons": COMPARISONS}
    return report.write_results(
        folder,
        protocols={"all users": protocol},
        provenance=report.provenance("abc"),
        facts={"dropped_events": 0.5},
    )


def test_results_can_be_read_back(tmp_path):
    path = write(tmp_path)
    results = json.loads(path.read_text())
    assert path == tmp_path / "results.json"
    assert results["protocols"] == {"all users": {"users": 3, "rows": ROWS, "comparisons": COMPARISONS}}
    assert results["provenance"]["dataset"] == "abc"
    assert results["provenance"]["device"]["platform"] == "cpu"
    assert results["provenance"]["versions"]["jax"]


def test_the_same_run_writes_the_same_bytes(tmp_path):
    assert write(tmp_path).read_bytes() == write(tmp_path).read_bytes()


def predict(folder, **changes):
    arguments = dict(
        user_ids=["7", "ä", "9"],
        labels=np.array([2, 1, 3]),
        ranks=RANKS,
        answers=np.array([[2, 1, 0], [3, 1, 2], [0, 0, 0]], np.int32),
        names=["", "Amélie", "Brazil", "Cube"],
    )
    return report.write_predictions(folder, report.ranking_predictions(**{**arguments, **changes}))


def test_predictions_hold_one_line_a_user(tmp_path):
    lines = [json.loads(line) for line in predict(tmp_path).read_text(encoding="utf-8").splitlines()]
    assert lines == [
        {"user_id": "7", "label": "Brazil", "ranks": {"popularity": 3, "User-LLM": 1}, "top": ["Brazil", "Amélie"]},
        {"user_id": "ä", "label": "Amélie", "ranks": {"popularity": None, "User-LLM": 2},
         "top": ["Cube", "Amélie", "Brazil"]},
        {"user_id": "9", "label": "Cube", "ranks": {"popularity": 40, "User-LLM": None}, "top": []},
    ]  # fmt: skip


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    before = predict(tmp_path).read_bytes()
    with pytest.raises(IndexError):
        predict(tmp_path, answers=np.array([[2, 1, 0], [3, 99, 2], [0, 0, 0]], np.int32))
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]
    assert (tmp_path / "predictions.jsonl").read_bytes() == before


def test_users_labels_and_answers_must_match(tmp_path):
    with pytest.raises(ValueError, match="zip"):
        predict(tmp_path, user_ids=["7"])


def test_a_commit_is_told_only_where_git_tracks_the_module(tmp_path):
    """Installed into a .venv inside a clone of another project, the module is no file of that clone's commit."""
    environment = dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "EMAIL"), "x")

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    path = Path(shutil.copy(report.__file__, tmp_path))
    spec = importlib.util.spec_from_file_location("copied_report", path)
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message=other")
    assert copied._commit() is None
    git("add", path.name)
    git("commit", "--quiet", "--message=ours")
    assert copied._commit() == git("rev-parse", "HEAD")
    path.write_text(path.read_text() + "# edited\n")
    assert copied._commit() == git("rev-parse", "HEAD") + "-dirty"

"""The report of a sweep whose runs are stand-ins, held to naive arithmetic on what they left."""

import dataclasses
import html.parser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from user_llm.config import ConfigError
from user_llm.launch import local
from user_llm.launch.archive import archive
from user_llm.launch.arguments import sweep_parser
from user_llm.launch.plan import Plan
from user_llm.launch.report import orderings as ordering
from user_llm.launch.report import write_report
from user_llm.launch.report.costs import cost_of, costs
from user_llm.launch.report.document import compose
from user_llm.launch.report.notes import read_notes
from user_llm.launch.report.orderings import HOLDS, NOISE, REVERSED, Ordering, best, decided, in_words, orderings
from user_llm.launch.report.overview import overview
from user_llm.launch.report.paper import paper_figure
from user_llm.launch.report.results import Figure, Results, Sample
from user_llm.launch.report.tables import cell_text, setting_note, table
from user_llm.launch.resolve import resolve
from user_llm.launch.sweeps import TABLES

STAND_IN = Path(__file__).with_name("stand_in.py")
NO_BREAK = "\N{NO-BREAK SPACE}"
BAR = "\\|\N{WORD JOINER}" + NO_BREAK
DATASETS = ["--datasets=movielens,amazon_reviews", "--scale=laptop", "--seeds=0,1"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "does").mkdir()
    (folder / "does" / "fail").write_text("bert4rec.alone.n50.seed1")
    flags = ["--tables=2,3,4,6,fig3", f"--out={folder}", "--jobs=3", *DATASETS]
    assert local.main(flags, [sys.executable, str(STAND_IN)]) == 1
    return folder


@pytest.fixture(scope="module")
def plan(out):
    return Plan.load(out)


@pytest.fixture
def results(out):
    return Results(out)


@pytest.fixture(scope="module")
def markdown(out):
    return (out / "report.md").read_text()


@pytest.fixture(scope="module")
def page(out):
    return (out / "report.html").read_text()


def cell_of(plan, table, **wanted):
    (found,) = (cell for cell in plan.cells(table) if all(getattr(cell, key) == value for key, value in wanted.items()))
    return found


def naive(out, cell, user=None):
    """Mean over seeds and users, or of one user, a line at a time."""
    values = []
    for run in cell.runs:
        path = out / run.name / "predictions.jsonl"
        if not path.exists():
            continue
        for line in path.read_text().splitlines():
            line = json.loads(line)
            if user not in (None, line["user_id"]):
                continue
            if cell.metric == "rougeLsum":
                values.append(100 * line["written"][cell.source]["rougeLsum"])
            else:
                values.append(line["ranks"][cell.source] <= int(cell.metric.partition("@")[2]))
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("table", "wanted"),
    [
        ("2", dict(dataset="movielens", column="USER-LLM", metric="recall@1")),
        ("2", dict(dataset="amazon_reviews", column="DualEnc", metric="recall@10")),
        ("4", dict(dataset="amazon_reviews", task="review_generation", column="TP")),
        ("4", dict(dataset="movielens", column="DualEnc")),
        ("fig3", dict(column="Frozen Len100 TP", metric="recall@10")),
    ],
)
def test_a_figure_is_the_mean_over_users_and_seeds(out, plan, results, table, wanted):
    cell = cell_of(plan, table, **wanted)
    figure = results.figure(cell)
    assert figure.value == pytest.approx(naive(out, cell))
    assert figure.low < figure.value < figure.high
    assert np.mean(figure.seeds) == pytest.approx(figure.value)
    assert len(figure.seeds) == 2
    of_users = dict(zip(figure.sample.users.tolist(), figure.sample.values, strict=True))
    assert len(of_users) == 40
    for user in ("0", "9", "10"):
        assert of_users[user] == pytest.approx(naive(out, cell, user))


def test_a_failed_seed_is_left_out_and_a_cell_without_runs_has_no_figure(out, plan, results):
    cell = cell_of(plan, "2", dataset="movielens", column="Bert4Rec", metric="recall@1")
    assert len(results.figure(cell).seeds) == 1
    assert results.figure(cell).value == pytest.approx(naive(out, cell))
    assert results.figure(cell_of(plan, "2", dataset="google_local", column="Bert4Rec", metric="recall@1")) is None


def test_counts_and_measurements_are_read_where_they_are(plan, results):
    values = {(cell.row, cell.column): results.figure(cell).value for cell in plan.cells("3")}
    assert values["# Tokens, TP", "Len100"] == 1300
    assert values["# Tokens, USER-LLM", "Len200"] == 32
    assert values["FLOPs reduction", "Len50"] == pytest.approx(650 / 32)
    assert results.figure(cell_of(plan, "6", row="Tokens", column="+Perceiver")).value == 16
    train = cell_of(plan, "1", dataset="movielens", column="Train examples")
    assert results.figure(train).value == 1234


def test_a_finished_run_that_has_lost_its_predictions_is_named(out, plan, tmp_path):
    cell = cell_of(plan, "2", dataset="movielens", column="USER-LLM", metric="recall@1")
    shutil.copytree(out, tmp_path / "copy")
    (tmp_path / "copy" / cell.runs[0].name / "predictions.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"predictions\.jsonl is missing: delete .*/copy/movielens[^/]+ and start"):
        Results(tmp_path / "copy").figure(cell)


def test_the_archive_of_a_sweep_gives_the_report_of_its_runs(out, markdown, tmp_path):
    kept = ["sweep.json", "runs.json", "starts.json", "archive"]
    for name in kept:
        (shutil.copytree if (out / name).is_dir() else shutil.copy)(out / name, tmp_path / name)
    write_report(tmp_path)
    assert (tmp_path / "report.md").read_text() == markdown
    assert {path.name for path in tmp_path.glob("figures/*")} == {path.name for path in out.glob("figures/*")}
    assert not [path for path in tmp_path.iterdir() if path.name not in (*kept, "figures", "report.md", "report.html")]


def test_an_archive_holds_figures_but_no_answers_and_is_made_again_with_its_run(out, plan, tmp_path):
    run = cell_of(plan, "4", dataset="amazon_reviews", task="review_generation", column="TP").runs[0]
    shutil.copytree(out / run.name, tmp_path / run.name)
    archive(tmp_path, [run.name, "not finished"])
    (file,) = (tmp_path / "archive").iterdir()
    assert file.read_bytes() == (out / "archive" / file.name).read_bytes()  # made at another time
    with zipfile.ZipFile(file) as zipped:
        predictions = [json.loads(line) for line in zipped.read("predictions.jsonl").splitlines()]
    assert {json.dumps([*line, *line["written"]["TextPrompt"]]) for line in predictions} == {
        '["user_id", "written", "rougeLsum"]'
    }
    results = tmp_path / run.name / "results.json"
    before, text = file.stat().st_mtime_ns, results.read_text()
    archive(tmp_path, [run.name])
    assert file.stat().st_mtime_ns == before
    results.write_text(text.replace("c0ffee", "c0cac0"))
    os.utime(results, ns=(before + 1, before + 1))
    archive(tmp_path, [run.name])
    shutil.rmtree(tmp_path / run.name)
    assert Results(tmp_path).of(run)["provenance"]["commit"] == "c0cac0"


def test_damaged_predictions_are_named_and_not_archived(out, plan, tmp_path):
    run = cell_of(plan, "2", dataset="movielens", column="USER-LLM", metric="recall@1").runs[0]
    shutil.copytree(out / run.name, tmp_path / run.name)
    (tmp_path / run.name / "predictions.jsonl").write_text("{")
    with pytest.raises(ConfigError, match=rf"predictions\.jsonl is damaged .*: delete .*{re.escape(run.name)} "):
        archive(tmp_path, [run.name])
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".zip"]


@pytest.mark.parametrize("damage", [lambda whole: whole[:-100], lambda whole: whole[:200] + bytes(4) + whole[204:]])
def test_a_damaged_archive_is_named(out, plan, tmp_path, damage):
    run = cell_of(plan, "2", dataset="movielens", column="USER-LLM", metric="recall@1").runs[0]
    file = tmp_path / "archive" / f"{run.name}.zip"
    shutil.copytree(out / "archive", file.parent)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ConfigError, match=rf"{re.escape(str(file))}.* is damaged .*: delete {re.escape(str(file))} "):
        Results(tmp_path).of(run)


def test_cells_are_ours_and_the_paper_s(plan):
    cell = cell_of(plan, "4", dataset="amazon_reviews", task="review_generation", column="TP")
    figure = Figure(22.34, 20.0, 24.0, (22.0, 22.68), Sample(np.array(["1"]), np.array([22.34])))
    assert cell_text(cell, figure) == f"22.3{NO_BREAK}±2.0 (seeds ±0.3) {BAR}22.82"
    assert (
        cell_text(cell, dataclasses.replace(figure, seeds=(22.3,)), bold=True) == f"**22.3**{NO_BREAK}±2.0 {BAR}22.82"
    )
    assert cell_text(cell, None) == f"*not run* {BAR}22.82"
    train = cell_of(plan, "1", dataset="movielens", column="Train examples")
    assert cell_text(train, Figure(74184)) == f"74,184 {BAR}13,821,405"
    baseline = cell_of(plan, "baselines", dataset="movielens", column="Popularity", metric="recall@1")
    assert cell_text(baseline, None) == "*not run*"


def test_a_table_says_which_data_stand_where():
    plan = Plan("workstation", (0,), (), ("4",), ("amazon_reviews", "gift_cards"))
    assert setting_note(plan, plan.cells("4", plan.datasets)) == (
        "Ours: Amazon (favourite category): Amazon Beauty of 2014 (real), N = 50; Amazon (reviews): Amazon reviews, "
        "simulated, N = 20; Amazon gift cards of 2018 (real), N = 5."
    )
    lengths = "Len50 is 50 events, Len100 is 100 events, Len200 is 200 events"
    assert setting_note(plan, plan.cells("11")) == f"Ours: MovieLens-1M (real); {lengths}."


class Fixed:
    """Results that are made up: column → values of the users."""

    def __init__(self, columns):
        self.columns = columns

    def figure(self, cell):
        if cell.column not in self.columns or (cell.dataset, cell.metric) != ("movielens", "recall@10"):
            return None
        values = np.asarray(self.columns[cell.column], float)
        users = np.array([f"{number:03}" for number in range(len(values))])
        return Figure(values.mean(), 0, 1, (values.mean(),), Sample(users, values))


HIGH, LOW = np.tile([1, 1, 1, 0], 50), np.tile([1, 0, 0, 0], 50)


@pytest.mark.parametrize(
    ("user_llm", "dual_encoder", "verdict"),
    [(HIGH, LOW, HOLDS), (LOW, HIGH, REVERSED), (LOW, np.roll(LOW, 1), NOISE), (HIGH[:0], HIGH, None)],
)
def test_an_ordering_of_the_paper_holds_is_reversed_or_is_noise(plan, user_llm, dual_encoder, verdict):
    # Table 2 has USER-LLM at 0.243 and DualEnc at 0.206.
    columns = {name: values for name, values in (("USER-LLM", user_llm), ("DualEnc", dual_encoder)) if len(values)}
    found = orderings(plan.cells("2"), Fixed(columns))
    assert [one.verdict for one in found] == ([verdict] if verdict else [])
    for one in found:
        assert (one.ahead.column, one.behind.column, one.users) == ("USER-LLM", "DualEnc", 200)
        assert one.value == pytest.approx(np.mean(user_llm) - np.mean(dual_encoder))
    strong = {cell.column for cell in best(plan.cells("2"), Fixed(columns))}
    assert strong == {HOLDS: {"USER-LLM"}, REVERSED: {"DualEnc"}}.get(verdict, set())


def test_a_table_is_told_in_one_sentence_and_what_is_decided_in_a_line_each(plan):
    found = orderings(plan.cells("2"), Fixed({"USER-LLM": LOW, "DualEnc": HIGH, "Bert4Rec": HIGH}))
    # The paper: USER-LLM 0.243, DualEnc 0.206, Bert4Rec 0.158.
    assert re.fullmatch(
        r"Of 3 orderings of the paper that can be tested here \*\*0\*\* hold, \*\*2\*\* are reversed \(most clearly "
        r"MovieLens, next item, @10: (DualEnc|Bert4Rec) ahead of USER-LLM\) and \*\*1\*\* stays open \(least clear "
        r"MovieLens, next item, @10: DualEnc ahead of Bert4Rec\)\.",
        in_words(found, "2"),
    )
    lines = decided(found)
    pattern = (
        r"- MovieLens, next item, @10: \w+ is ahead of USER-LLM by 0\.500 \[0\.4\d\d, 0\.5\d\d\], "
        r"the other way round than in the paper \(200 users\)"
    )
    assert len(lines) == 2
    assert all(re.fullmatch(pattern, line) for line in lines)


@pytest.mark.parametrize(
    ("low", "high", "close"), [(-0.1, 0.9, True), (0.1, 1.1, True), (-1.1, -0.1, True), (-1, 1, False), (1, 2, False)]
)
def test_an_interval_that_ends_near_zero_is_close(plan, low, high, close):
    one, other, *_ = plan.cells("2")
    assert Ordering(one, other, (low + high) / 2, low, high, 10).is_close == close


def test_the_first_page_counts_every_pair_once_and_names_what_another_seed_may_decide(plan):
    columns = {"USER-LLM": LOW, "DualEnc": HIGH, "Bert4Rec": LOW, "Full PT": LOW, "Enc RD": HIGH, "Proj RD": HIGH}
    found = {table: orderings(plan.cells(table), Fixed(columns)) for table in ("2", "13")}
    near = dataclasses.replace(found["13"][0], value=0.4, low=-0.1, high=0.9)
    found["13"] = [near, *found["13"][1:]]
    found["14"] = found["13"]  # the same pairs in another table
    _, table, settled, sentences, close, commands, _ = overview(plan, found, {"13": "Few\nsteps."})
    both = [*found["2"], *found["13"]]
    counts = " | ".join(str(sum(one.verdict == name for one in both)) for name in (HOLDS, REVERSED, NOISE))
    assert table.splitlines()[-1] == f"| **All**, each pair once | {counts} |"
    assert f"of {len(both)} are decided**" in settled
    first, second, _ = sentences.splitlines()
    assert first.startswith("- **Table 2.** Of 3 orderings")
    assert first.endswith("No reason is written down yet (`notes.md`).")
    assert second.endswith(" Reason: Few steps.")
    assert close.startswith("<details><summary>1 of these have")
    (line,) = commands.splitlines()
    assert line.startswith(f"- Table 13, 1 of {len(found['13'])}: ")
    flags = shlex.split(re.search("`user-llm sweep (.+)`", line)[1])
    assert sweep_parser("", "").parse_args(flags).seeds == (2,)  # the plan has 0 and 1


def test_notes_stand_with_their_tables_and_a_wrong_heading_is_named(tmp_path):
    assert read_notes(tmp_path, ["2", "fig3"]) == {}
    (tmp_path / "notes.md").write_text(
        "## Table 2\n\nToo few steps:\n**seen** with twice as many.\n\n## Figure 3 \nx\n"
    )
    assert read_notes(tmp_path, ["2", "fig3"]) == {"2": "Too few steps:\n**seen** with twice as many.", "fig3": "x"}
    for text, says in (
        ("## Table 9\nx", r"notes\.md: `## Table 9` is no table of this scale; expected headings as `## Table 2`"),
        ("## Table 2\nx\n## Table 2\ny", "stands there twice"),
        ("Table 2: x", "text stands before the first heading"),
    ):
        (tmp_path / "notes.md").write_text(text)
        with pytest.raises(ConfigError, match=says):
            read_notes(tmp_path, ["2", "fig3"])


def test_rows_say_what_they_cost_and_who_has_seen_fewer_texts(plan, results):
    cells = [cell for cell in plan.cells("2") if cell.dataset == "movielens"]
    *_, table, _, _ = costs(cells, results)
    lines = dict(re.findall(r"\| MovieLens, next item \| ([\w-]+) \| (.+) \|", table))
    (run, _) = cell_of(plan, "2", dataset="movielens", column="USER-LLM", metric="recall@1").runs
    training = resolve(run.config, run.values(Path())).training.user_llm
    assert lines["USER-LLM"] == f"{training.steps * training.batch_size:,} | 20 s | 1e+12"  # as the stand-in leaves
    *_, baselines, _, _ = costs(plan.cells("baselines"), results)
    assert "| USER-LLM |" in baselines
    assert not re.search("Popularity|shuffled", baselines)  # which the same runs have, and nothing learnt for
    assert cost_of(cell_of(plan, "3", row="FLOPs reduction", column="Len50").runs[0], results) is None
    (ours,) = {cell.runs for cell in cells if cell.column == "USER-LLM"}
    shorter = dataclasses.replace(ours[0], overrides=(*ours[0].overrides, ("training.user_llm.steps", 7)))

    class Both(Results):
        def of(self, run):
            return super().of(ours[0])

        def metrics(self, run, stage, kind):
            return []

    text = next(
        iter(costs([*cells, dataclasses.replace(cells[0], column="Short", runs=(shorter,))], Both(results.out)))
    )
    assert text == (
        f"Not all rows learnt from as many texts. MovieLens, next item: Short ({7 * training.batch_size:,}), "
        f"where the others saw {training.steps * training.batch_size:,}."
    )


def test_a_row_that_only_some_runs_have_is_shown_where_it_is(plan, out, results, markdown):
    wanted = [cell.column for cell in plan.cells("baselines") if cell.optional and cell.metric == "recall@1"]
    assert {"Followers", "USER-LLM fused", "USER-LLM re-ranking", "Two encoders"} <= set(wanted)
    assert "USER-LLM fused" not in markdown

    class Fused(Results):
        def _sample(self, name, source, metric):
            return super()._sample(name, "User-LLM" if "fused" in source else source, metric)

    assert "USER-LLM fused" in compose(plan, Fused(out)).markdown


def test_a_figure_of_new_items_is_read_from_their_own_table(tmp_path):
    plan = Plan("workstation", (0, 1), (), ("cold",), ("movielens",))
    cells = plan.cells("cold", plan.datasets)
    (run,) = {run for cell in cells for run in cell.runs}  # one seed: intervals over users are kept, no users
    (protocol,) = {cell.protocol for cell in cells if cell.row == "among the cold"}
    interval = {"value": 0.118, "low": 0.1, "high": 0.13}
    (tmp_path / run.name).mkdir()
    (tmp_path / run.name / "results.json").write_text(
        json.dumps({"protocols": {protocol: {"rows": {"User-LLM": {"recall@10": interval}}}}})
    )
    results = Results(tmp_path)
    known = {(cell.row, cell.column): figure for cell in cells if (figure := results.figure(cell))}
    assert known == {("among the cold", "USER-LLM"): Figure(0.118, 0.1, 0.13)}
    assert f"0.118{NO_BREAK}±0.015" in table(cells, results)


def test_only_the_same_users_are_compared():
    sample, other = Sample(np.array(["a", "b", "c"]), np.array([1.0, 0, 0])), Sample(np.array(["b"]), np.array([1.0]))
    interval, users = ordering.difference(sample, other)
    assert (interval["value"], users) == (-1.0, 1)
    assert ordering.difference(sample, Sample(np.array(["z"]), np.array([1.0]))) == ({}, 0)


def test_lengths_are_compared_among_themselves(plan, results):
    for one in orderings(plan.cells("fig3"), results):
        assert len({re.search(r"Len\d+", cell.column)[0] for cell in (one.ahead, one.behind)}) == 1
        assert float(paper_figure(one.ahead)) > float(paper_figure(one.behind))


def test_every_table_has_its_place_and_a_command_for_what_is_not_run(plan, markdown):
    headings = re.findall(r"^## (.+)$", markdown, re.MULTILINE)
    assert [text.split(".")[0] for text in headings if text.startswith("Table")] == [
        *(f"Table {name}" for name in TABLES if name.isdigit()),
        "Table 15",
    ]
    assert any(text.startswith("Figure 3") for text in headings)
    commands = re.findall(r"^Not run: `(.+)`$", markdown, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        program, verb, *flags = shlex.split(command)
        assert (program, verb) == ("user-llm", "sweep")
        (table,) = sweep_parser("", "").parse_args(flags).tables
        assert table in TABLES
    head = re.search(r"```\n(.+)\n```", markdown)[1]
    arguments = sweep_parser("", "").parse_args(shlex.split(head)[2:])
    assert (arguments.tables, arguments.seeds) == (plan.tables, plan.seeds)


def test_the_report_says_where_it_comes_from(markdown):
    assert "| commit | c0ffee |" in markdown
    assert "1 runs failed" in markdown
    assert "No leak in any of" in markdown
    assert "MovieLens, next item: ties, 3 of 40" in markdown


def test_a_leak_is_told_first(out, plan, tmp_path):
    run = next(run for run in plan.runs() if run.dataset)
    found = json.loads((out / run.name / "results.json").read_text())
    found["audit"] = {"verdict": "leaks", "checks": {"x": {"verdict": "leak", "count": 1, "of": 2}}}

    class Leaking(Results):
        def of(self, other):
            return found if other.name == run.name else super().of(other)

    text = compose(plan, Leaking(out)).markdown
    assert re.search(rf"\*\*1 of \d+ runs leak\*\*: {re.escape(run.name)}\.", text)


class Parser(html.parser.HTMLParser):
    """Collects tags that are open, attributes that name something outside, and cells."""

    def __init__(self):
        super().__init__()
        self.open, self.outside, self.tables, self.text = [], [], 0, ""
        self.links, self.places = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br", "hr"):
            self.open.append(tag)
        self.tables += tag == "table"
        named = [value for key, value in attributes if key in ("src", "href")]
        self.outside += [value for value in named if not value.startswith(("data:image/svg+xml;", "#"))]
        self.links += [value[1:] for value in named if value.startswith("#")]
        self.places += [value for key, value in attributes if key == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_needs_no_network(out, markdown, page):
    parser = Parser()
    parser.feed(page)
    assert parser.open == []
    assert parser.outside == []
    assert "url(" not in page
    assert parser.links == parser.places  # the contents name every part once
    assert len(parser.places) == len(re.findall(r"^## ", markdown, re.MULTILINE))
    assert parser.tables == len(re.findall(r"^\| ---", markdown, re.MULTILINE))
    figures = re.findall(r"!\[.+\]\(figures/(.+)\)", markdown)
    assert {path.name for path in (out / "figures").iterdir()} == set(figures)
    assert {"longer_histories.svg", "costs.svg", "learning_0.svg"} <= set(figures)
    assert page.count("data:image/svg+xml;base64,") == len(figures)
    assert f'<td style="text-align:right"><em>not run</em> {BAR[1:]}0.005</td>' in page


def test_samples_stand_in_the_table_as_they_were_written(page):
    parser = Parser()
    parser.feed(page)
    assert "Write | a review" in parser.text
    assert "Good <b>" in parser.text


def test_the_same_runs_give_the_same_bytes(out, markdown, page):
    before = {path: path.read_bytes() for path in [*out.glob("report.*"), *out.glob("figures/*")]}
    command = [sys.executable, "-m", "launch.report", f"--out={out}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(out / "report.md"), str(out / "report.html")]
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_without_a_sweep_is_named(tmp_path):
    command = [sys.executable, "-m", "launch.report", f"--out={tmp_path}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert f"error: {tmp_path} has no sweep.json" in ended.stderr


def test_a_sweep_without_a_finished_run_has_a_report(tmp_path):
    Plan("paper", (0,), (), ("2",), ("movielens",)).save(tmp_path)
    markdown, _ = write_report(tmp_path)
    assert "Nothing can be said yet" in markdown.read_text()
    assert "No run is finished." in markdown.read_text()

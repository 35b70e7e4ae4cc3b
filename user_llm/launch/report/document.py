"""The report as one Markdown text and its figures; `page.py` makes the HTML of it."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from user_llm.launch.board import duration
from user_llm.launch.plan import Plan
from user_llm.launch.report import plots
from user_llm.launch.report.costs import costs
from user_llm.launch.report.names import DATASETS, TASKS, curve_title, run_title, table_name
from user_llm.launch.report.notes import read_notes
from user_llm.launch.report.orderings import Ordering, decided, in_words, orderings
from user_llm.launch.report.overview import overview
from user_llm.launch.report.results import Results
from user_llm.launch.report.tables import command, setting_note, table, what_to_run
from user_llm.launch.runs import EFFICIENCY, Run, with_needs
from user_llm.launch.scales import SCALES
from user_llm.launch.sweeps import TABLES, Cell, tables_of

_FAILED_LINES = 20
_LISTED = 8  # orderings in a list; longer ones are folded
_SAMPLES_HEAD = "| prompt | true | with the user | without |\n| --- | --- | --- | --- |"
_STAGES = {"encoder": "encoder alone", "user_llm": "language model with its context"}
_KINDS = {"train": "training", "validation": "validation"}
_CURVES = (("encoder", "validation", "recall@10"), ("user_llm", "train", "loss"))


@dataclasses.dataclass
class Document:
    """A Markdown text and the SVG files it names as `figures/<name>`."""

    title: str
    markdown: str = ""
    figures: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, *paragraphs: str) -> None:
        """Appends paragraphs; empty ones are left out."""
        self.markdown += "".join(f"{text.strip()}\n\n" for text in paragraphs if text.strip())

    def add_figure(self, name: str, svg: str, caption: str) -> None:
        """Appends a figure."""
        self.figures[name] = svg
        self.add(f"![{caption}](figures/{name})")


def compose(plan: Plan, results: Results) -> Document:
    """The report of a sweep, as far as its runs are finished."""
    document = Document(f"User-LLM: the paper's tables at {plan.scale} scale")
    cells = {name: plan.cells(name) for name in tables_of(plan.scale)}
    runs = with_needs([run for some in cells.values() for cell in some for run in cell.runs])
    finished = [run for run in runs if results.of(run)]
    document.add(f"# {document.title}", _head(plan, results, runs, finished), _HOW_TO_READ)
    found = {name: orderings(some, results) for name, some in cells.items()}
    notes = read_notes(results.out, cells)
    # Figure 3 draws what Table 11 counts.
    shown = {name: some for name, some in found.items() if name != "11"}
    document.add("## What of the paper holds here", *overview(plan, shown, notes))
    for name, every in cells.items():
        some = [cell for cell in every if not cell.optional or results.figure(cell)]
        _add_table(document, name, some, plan, results)
        _add_orderings(document, name, found[name], notes)
        if name != "fig3":  # whose rows are Table 11's
            document.add(*costs(some, results))
        document.add(what_to_run(some, plan, results))
        if name == "3":
            _add_costs(document, some, results)
    _add_learning_curves(document, plan.seeds[0], finished, results)
    document.add(*_samples(finished, results))
    document.add("## Audit", *_audit(finished, results))
    document.add("## Provenance", *_provenance(runs, finished, results))
    return document


_HOW_TO_READ = """\
A cell is **ours | the paper's**. Ours: every test user, the whole catalogue, no sampled negatives; ± is half of the
95 % bootstrap interval over users, "seeds" half of the range over seeds. A figure is bold where it is ahead of every
other of its row beyond chance (paired bootstrap over the users). The paper's are of its own datasets with PaLM-2 XXS:
what can be compared at another scale is the order of models, not the figures. Each pair of models is judged alone: of
a hundred pairs that are truly equal, about five would be told apart by chance."""


def _head(plan: Plan, results: Results, runs: Sequence[Run], finished: Sequence[Run]) -> str:
    names = {run.name for run in plan.runs()}
    seconds = sum(results.records.get(run.name, {}).get("seconds", 0) for run in finished)
    flops = sum(
        stage["flops_6nd"] for run in finished for stage in results.of_finished(run).get("training", {}).values()
    )
    done = sum(run.name in names for run in finished)
    text = f"```\n{command(plan, plan.tables, plan.datasets)}\n```\n\n"
    text += f"{done} of its {len(names)} runs are finished"
    text += f", in {duration(seconds)} of processes" if seconds else ""
    text += f" and {flops:.2g} FLOPs of training (6 N D)" if flops else ""
    return f"{text}; all tables at this scale are {len(runs)} runs.{_wall_clock(results)}"


def _wall_clock(results: Results) -> str:
    starts = [start for start in results.starts if start["seconds"] > 5]  # that did something
    if not starts:
        return ""
    stopped = sum(start["stopped"] for start in starts)
    hours = duration(sum(start["seconds"] for start in starts))
    jobs = "/".join(sorted({str(start["jobs"]) for start in starts}))
    return (
        f" Wall clock: {hours}, {jobs} at a time, in {len(starts)} start{'s' if len(starts) > 1 else ''}"
        + (f" ({stopped} of them interrupted and continued)" if stopped else "")
        + "."
    )


def _add_table(document: Document, name: str, cells: Sequence[Cell], plan: Plan, results: Results) -> None:
    document.add(f"## {table_name(name)}. {TABLES[name].title}")
    if name != "fig3":
        document.add(table(cells, results), setting_note(plan, cells))
        return
    if drawn := plots.longer_histories(cells, results, SCALES[plan.scale]):
        document.add_figure("longer_histories.svg", drawn, "Recall by the length of histories, ours and the paper's")
    document.add("The figures are those of Table 11.", setting_note(plan, cells))


def _add_orderings(document: Document, name: str, found: Sequence[Ordering], notes: Mapping[str, str]) -> None:
    if name == "fig3":
        document.add(notes.get(name, ""))
        return
    document.add(in_words(found, name), notes.get(name, ""))
    if lines := decided(found):
        folded = len(lines) > _LISTED
        summary = f"<details><summary>All {len(lines)} that are decided</summary>"
        document.add(*([summary] if folded else []), "\n".join(lines), *(["</details>"] if folded else []))


def _add_costs(document: Document, cells: Sequence[Cell], results: Results) -> None:
    measured = results.of(cells[0].runs[0])
    if measured:
        document.add_figure("costs.svg", plots.costs(measured["rows"]), "What answering costs by length of history")
        document.add(
            f"Measured with {measured['users']} users at once on {measured['device']['kind']}, config "
            f"{measured['config']}, beside the sweep's other runs: ratios hold where milliseconds do not. Tokens of a "
            "text prompt are the paper's."
        )


def _add_learning_curves(document: Document, seed: int, finished: Sequence[Run], results: Results) -> None:
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for run in finished:
        for stage, kind, metric in _CURVES:
            lines = results.metrics(run, stage, kind)
            points = [(line["step"], line[metric]) for line in lines if metric in line]
            if points and run.label.endswith(f"seed{seed}"):
                _, task, *_ = run.label.split(".")
                title = f"{DATASETS[run.dataset]}, {TASKS[task]}, {_STAGES[stage]}: {_KINDS[kind]} {metric}"
                panels.setdefault(title, {})[curve_title(run)] = points
    if panels:
        document.add(
            "## Learning curves",
            f"Of seed {seed}. Validation windows have the event before the test event as their label.",
        )
    for number, (title, svg) in enumerate(plots.learning_curves(panels)):
        document.add_figure(f"learning_{number}.svg", svg, title)


def _samples(finished: Sequence[Run], results: Results) -> Iterator[str]:
    """The paper's table 15, of the first contextualised run of each dataset."""
    shown: set[str] = set()
    for run in finished:
        samples = results.of_finished(run).get("samples")
        if not samples or run.dataset in shown or "text_prompt" in run.label or not run.encoder:
            continue
        if not shown:
            yield "## Table 15. Samples of reviews"
        shown.add(run.dataset)
        yield f"{run_title(run)}:"
        keys = ("prompt", "truth", "personalised", "unpersonalised")
        rows = [" | ".join(_cell(sample[key]) for key in keys) for sample in samples]
        yield "\n".join([_SAMPLES_HEAD, *(f"| {row} |" for row in rows)])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;") or "-"


def _audit(finished: Sequence[Run], results: Results) -> Iterator[str]:
    """The verdict of every kind of run, and what is no leak but should be known."""
    audits = [(run, audit) for run in finished if (audit := results.of_finished(run).get("audit"))]
    if not audits:
        yield "No run has been audited yet."
        return
    leaking = [run for run, audit in audits if audit["verdict"] == "leaks"]
    if leaking:
        yield f"**{len(leaking)} of {len(audits)} runs leak**: {', '.join(run.name for run in leaking)}."
    else:
        yield f"No leak in any of {len(audits)} runs. Exceptions, which are none but should be known:"
    seen: dict[tuple[str, str], str] = {}
    for run, audit in audits:
        for check, found in audit["checks"].items():
            if found["verdict"] != "pass":
                setting = f"{DATASETS[run.dataset]}, {TASKS[run.label.split('.')[1]]}"
                seen.setdefault((setting, check), f"{found['count']:,} of {found['of']:,}")
    yield "\n".join(f"- {setting}: {check}, {count}" for (setting, check), count in seen.items())


def _provenance(runs: Sequence[Run], finished: Sequence[Run], results: Results) -> Iterator[str]:
    """Commits, data, versions and devices; then every run."""
    facts: dict[str, set[str]] = collections.defaultdict(set)
    for run in finished:
        found = results.of_finished(run)
        provenance = found if run.program == EFFICIENCY else found["provenance"]
        device = provenance["device"]
        facts["commit"].add(str(provenance["commit"]))
        facts["device"].add(f"{device['count']} x {device['kind']} ({device['platform']})")
        facts["python"].add(provenance["python"])
        facts["versions"].add(", ".join(f"{name} {version}" for name, version in provenance["versions"].items()))
        if run.program != EFFICIENCY:
            facts[f"data, {run.dataset.replace('_', ' ')} (SHA-256)"].add(provenance["dataset"])
    if not finished:
        yield "No run is finished."
        return
    yield "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {'; '.join(sorted(v))} |" for name, v in facts.items())])
    rows = [_run_line(run, results) for run in runs if run.name in {one.name for one in finished}]
    yield f"<details><summary>{len(finished)} finished runs</summary>"
    yield "\n".join(["| run | time | FLOPs, 6 N D | commit |", "| --- | ---: | ---: | --- |", *rows])
    yield "</details>"
    failed = [name for name, record in results.records.items() if record["state"] == "failed"]
    if failed:
        lines = [f"- {name}: {results.records[name]['message']}" for name in failed[:_FAILED_LINES]]
        yield "\n".join([f"{len(failed)} runs failed:", "", *lines])


def _run_line(run: Run, results: Results) -> str:
    found, record = results.of_finished(run), results.records.get(run.name, {})
    flops = sum(stage["flops_6nd"] for stage in found.get("training", {}).values())
    commit = (found if run.program == EFFICIENCY else found["provenance"])["commit"] or ""
    time = duration(record["seconds"]) if record.get("seconds") else ""
    return f"| {run.name} | {time} | {f'{flops:.2g}' if flops else ''} | {commit[:10]} |"

"""A table of the paper in Markdown, **ours | paper** in every cell."""

import shlex
from collections import Counter
from collections.abc import Sequence

from user_llm.launch.plan import Plan
from user_llm.launch.report.names import DATASETS, TASKS, heading, row_name
from user_llm.launch.report.orderings import best
from user_llm.launch.report.paper import paper_figure
from user_llm.launch.report.results import Figure, Results
from user_llm.launch.scales import NEXT, SCALES, Setting
from user_llm.launch.sweeps import Cell

NOT_RUN = "*not run*"
_JOINED, _BAR = (
    "\N{NO-BREAK SPACE}",
    "\\|\N{WORD JOINER}\N{NO-BREAK SPACE}",
)  # a narrow cell breaks before the paper's figure, not inside of one
_WIDEST = 5  # columns of the paper's layout; a wider table is turned, a dataset at a time, for narrow screens


def table(cells: Sequence[Cell], results: Results) -> str:
    """The cells in the paper's layout (rows: dataset, task, metric), or turned where that is too wide."""
    strong = best(cells, results)
    texts = {cell: cell_text(cell, results.figure(cell), cell in strong) for cell in cells}
    columns = list(dict.fromkeys(cell.column for cell in cells))
    if len(columns) <= _WIDEST:
        return _grid(_rows(cells, texts, lambda cell: (row_name(cell), cell.column)), columns)
    parts: dict[str, list[str]] = {}
    for dataset, some in _alike(cells):
        headings = list(dict.fromkeys(heading(cell) for cell in some))
        grid = _grid(_rows(some, texts, lambda cell: (cell.column, heading(cell))), headings)
        parts.setdefault(dataset, [f"**{DATASETS[dataset]}**"]).append(grid)
    return "\n\n".join(text for some in parts.values() for text in some)


def cell_text(cell: Cell, figure: Figure | None, bold: bool = False) -> str:
    """`ours ±half its interval | paper`, as Markdown inside a table."""
    ours, theirs = NOT_RUN if figure is None else figure_text(figure, cell.metric, bold), paper_figure(cell)
    if theirs is None:
        return ours
    return f"{ours} {_BAR}{_thousands(theirs) if cell.metric in ('count', 'tokens') else theirs}"


def figure_text(figure: Figure, metric: str, bold: bool = False) -> str:
    """A figure with the half of its interval, and that of the seeds' range where there are several."""
    if figure.low is None or figure.high is None:
        return f"{figure.value:,.0f}" if metric in ("count", "tokens") else f"{figure.value:.1f}"
    digits = 1 if metric == "rougeLsum" else 3
    value = f"{figure.value:.{digits}f}"
    text = f"{f'**{value}**' if bold else value}{_JOINED}±{(figure.high - figure.low) / 2:.{digits}f}"
    if len(figure.seeds) > 1:
        text += f" (seeds ±{(max(figure.seeds) - min(figure.seeds)) / 2:.{digits}f})"
    return text


def what_to_run(cells: Sequence[Cell], plan: Plan, results: Results) -> str:
    """The command that would fill the cells that are not run; "" where all are."""
    lacking = [cell for cell in cells if results.figure(cell) is None]
    if not lacking:
        return ""
    return f"Not run: `{command(plan, [lacking[0].table], some_datasets(lacking, plan))}`"


def some_datasets(cells: Sequence[Cell], plan: Plan) -> list[str]:
    """Those of the cells, for `command`; none where they are all that the scale has."""
    datasets = [name for name in DATASETS if name and name in {cell.dataset for cell in cells}]
    return datasets if len(datasets) < len(SCALES[plan.scale].settings) else []


def command(plan: Plan, tables: Sequence[str], datasets: Sequence[str], seeds: Sequence[int] = ()) -> str:
    """The command of a sweep of some tables; `seeds` in place of the plan's."""
    words = ["user-llm", "sweep", f"--tables={','.join(tables)}", f"--scale={plan.scale}"]
    words += [f"--datasets={','.join(datasets)}"] if datasets else []
    words += [f"--seeds={','.join(map(str, seeds or plan.seeds))}", "--out=…"]
    words += ["--set", *(f"{key}={value}" for key, value in plan.settings)] if plan.settings else []
    return shlex.join(words).replace("'--out=…'", "--out=…")


def setting_note(plan: Plan, cells: Sequence[Cell]) -> str:
    """What stands for the paper's datasets at this scale, and its lengths where the table varies them."""
    scale = SCALES[plan.scale]
    tasks: dict[tuple[str, Setting], list[str]] = {}
    for dataset, task in dict.fromkeys((cell.dataset, cell.task or NEXT) for cell in cells if cell.dataset):
        tasks.setdefault((dataset, scale.settings[dataset][task]), []).append(TASKS[task])
    if not tasks:
        return ""
    if any("Len" in cell.column for cell in cells):
        lengths = ", ".join(f"Len{theirs} is {ours} events" for theirs, ours in scale.lengths.items())
        return f"Ours: {next(setting.title for _, setting in tasks)}; {lengths}."
    several = [dataset for dataset, count in Counter(dataset for dataset, _ in tasks).items() if count > 1]
    lines = []
    for (dataset, setting), some in tasks.items():
        which = f"{DATASETS[dataset]} ({', '.join(some)}): " if dataset in several else ""
        lines.append(f"{which}{setting.title}, N = {setting.history}")
    return f"Ours: {'; '.join(lines)}."


def _alike(cells: Sequence[Cell]) -> list[tuple[str, list[Cell]]]:
    """Cells by dataset, and by task where tasks have other columns."""
    columns: dict[tuple[str, str], dict[str, None]] = {}
    for cell in cells:
        columns.setdefault((cell.dataset, cell.task), {})[cell.column] = None
    groups: dict[tuple, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: list(DATASETS).index(cell.dataset)):
        groups.setdefault((cell.dataset, *columns[cell.dataset, cell.task]), []).append(cell)
    return [(dataset, some) for (dataset, *_), some in groups.items()]


def _rows(cells: Sequence[Cell], texts: dict[Cell, str], place) -> dict[str, dict[str, str]]:
    rows: dict[str, dict[str, str]] = {}
    for cell in cells:
        row, column = place(cell)
        rows.setdefault(row, {})[column] = texts[cell]
    return rows


def _grid(rows: dict[str, dict[str, str]], columns: Sequence[str]) -> str:
    lines = [f"| | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    return "\n".join(
        [
            *lines,
            *(f"| {name} | {' | '.join(row.get(column, '') for column in columns)} |" for name, row in rows.items()),
        ]
    )


def _thousands(figure: str) -> str:
    return f"{int(figure):,}"

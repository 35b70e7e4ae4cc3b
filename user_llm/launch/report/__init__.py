"""The report of a sweep: the paper's tables with our figures beside, in Markdown and one self-contained HTML file."""

from pathlib import Path

from user_llm.files import replacing
from user_llm.launch.archive import archive
from user_llm.launch.plan import Plan
from user_llm.launch.report.document import compose
from user_llm.launch.report.page import render
from user_llm.launch.report.results import Results

MARKDOWN, PAGE, FIGURES = "report.md", "report.html", "figures"


def write_report(out: Path) -> list[Path]:
    """Writes `report.md` (with `figures/*.svg` beside it) and `report.html` into a sweep's folder; returns both paths.

    What it reads of each run is kept in `archive/` (`archive.py`).

    Raises:
      ConfigError: the folder holds no sweep.
    """
    plan = Plan.load(out)
    archive(out, (run.name for run in plan.runs()))
    document = compose(plan, Results(out))
    (out / FIGURES).mkdir(exist_ok=True)
    for name, svg in document.figures.items():
        with replacing(out / FIGURES / name) as partial:
            partial.write_text(svg, encoding="utf-8")
    for path, text in ((out / MARKDOWN, document.markdown), (out / PAGE, render(document))):
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
    return [out / MARKDOWN, out / PAGE]

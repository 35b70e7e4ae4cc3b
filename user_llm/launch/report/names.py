"""How datasets, tasks, metrics and runs are called in the report."""

from user_llm.launch.runs import Run
from user_llm.launch.sweeps import Cell

DATASETS = {
    "movielens": "MovieLens",
    "google_local": "Google Local",
    "amazon_reviews": "Amazon",
    "gift_cards": "Gift cards",
    "": "",
}
TASKS = {"next_item": "next item", "favorite_category": "favourite category", "review_generation": "reviews", "": ""}
METRICS = {"recall@1": "@1", "recall@5": "@5", "recall@10": "@10", "rougeLsum": "ROUGE-Lsum"}


def table_name(table: str) -> str:
    """Of `sweeps.TABLES`, as the paper has it."""
    ours = {"baselines": "Baselines", "cold": "Items never seen", "pretrained": "Pretrained"}
    return {"fig3": "Figure 3", **ours}.get(table, f"Table {table}")


def row_name(cell: Cell) -> str:
    """A row of the paper's layout: "MovieLens, next item, @10"."""
    parts = [DATASETS[cell.dataset], TASKS[cell.task], cell.row, METRICS.get(cell.metric, "")]
    return ", ".join(part for part in parts if part)


def heading(cell: Cell) -> str:
    """A column of a turned table, which has one dataset: "next item @10"."""
    return " ".join(part for part in (TASKS[cell.task], cell.row, METRICS.get(cell.metric, "")) if part)


def run_title(run: Run) -> str:
    """A run in words."""
    dataset, task, *label = run.label.split(".")
    return ", ".join([DATASETS[dataset], TASKS[task], " ".join(label).replace("_", " ")])


def curve_title(run: Run) -> str:
    """A run among others of its dataset and task, in a legend."""
    return " ".join(run.label.split(".")[2:-1]).replace("_", " ")

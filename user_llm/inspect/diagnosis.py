"""Where a finished run loses on the way to a title:

    user-llm diagnose --workdir=RUN [--users=500] [--split=test] [--output=FILE.json]

For the labels of some users it takes the LLM's loss apart: what it spends outside of the catalogue, which nobody asks
for, and on the choice among the catalogue's titles, beside what its encoder loses on the same choice; by token. And it
ranks the same users by beams, by the probability of every title, and by the encoder. The dataset must be at hand.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from user_llm.arguments import whole
from user_llm.errors import UserError, show
from user_llm.evaluation.evaluator import Subset, rank_by_scores
from user_llm.evaluation.metrics import bootstrap_interval, ranking_metrics
from user_llm.evaluation.title_losses import TitleLosses, title_losses
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.seal import check_kept
from user_llm.experiment.training import RestoredStages
from user_llm.experiment.workdir import read_config
from user_llm.files import replacing
from user_llm.parallel.mesh import one_device
from user_llm.tasks.fused_items import rank_items, title_scores
from user_llm.tasks.rows import ENCODER, encoder_row

TASK = "next_item"
MOST_EXACT = 20_000  # titles whose probabilities are all computed


def diagnose(workdir: Path, *, users: int, split: str) -> dict[str, Any]:
    """What is printed.

    Raises:
      UserError: the run answers no next items, or has no contextualised LLM.
    """
    whole("--users", users, 0)
    config = read_config(workdir)
    check_kept(workdir)
    experiment = Experiment(config, workdir, one_device())
    if "user_llm" not in config.stages or TASK not in [task.name for task in experiment.tasks]:
        raise UserError(f"{workdir} has no LLM that answers next items: there is nothing to take apart.")
    trained = RestoredStages(experiment)
    model, trie = trained["user_llm"], experiment.answer_trie(TASK)
    encoder = encoder_row(experiment, trained, of="item")
    source = Subset.evenly(experiment.source(TASK, split), users)
    size, exclude = config.evaluation.batch_size, config.evaluation.exclude != "nothing"
    losses = title_losses(model, encoder, source, trie, batch_size=size)
    ranks = {"beams": rank_items(experiment, TASK, model, source, "beams")[0]}
    by_scores = dict(batch_size=size, exclude_seen=exclude)
    if trie.num_titles <= MOST_EXACT:
        scores = title_scores(experiment, TASK, model)
        ranks["every title"] = rank_by_scores(scores, source, description="every title", **by_scores)[0]
    if encoder is not None:
        ranks[ENCODER] = rank_by_scores(encoder, source, description=ENCODER, **by_scores)[0]
    metrics = {
        row: {name: bootstrap_interval(values) for name, values in ranking_metrics(found).items()}
        for row, found in ranks.items()
    }
    return {"users": len(source), "split": split, **take_apart(losses, encoder is not None), "ranks": metrics}


def take_apart(losses: TitleLosses, has_encoder: bool) -> dict[str, Any]:
    """Means over users, in nats: of whole titles, and of each token's place."""
    there, chosen = losses.choices > 0, losses.choices > 1
    inside = losses.llm - losses.outside
    titles: dict[str, float] = {
        "whole title": float(losses.llm.sum(axis=1).mean()),
        "outside of the catalogue": float(losses.outside.sum(axis=1).mean()),
        "of that where one token alone may follow": float((losses.outside * (there & ~chosen)).sum(axis=1).mean()),
        "choice among titles": float(inside.sum(axis=1).mean()),
    }
    places = []
    for place in range(losses.llm.shape[1]):
        here = there[:, place]
        if not here.any():
            break
        row = {
            "token": place + 1,
            "titles": int(here.sum()),
            "with a choice": float(chosen[here, place].mean()),
            "LLM": float(losses.llm[here, place].mean()),
            "outside": float(losses.outside[here, place].mean()),
            "choice": float(inside[here, place].mean()),
        }
        places.append({**row, "encoder's": float(losses.encoder[here, place].mean())} if has_encoder else row)
    if has_encoder:
        titles["the encoder's"] = float(losses.encoder.sum(axis=1).mean())
    return {"losses": titles, "tokens": places}


def print_diagnosis(found: dict[str, Any]) -> None:
    """Prints it as three tables."""
    console = Console(width=100)
    titles = Table(title=f"Loss of a {found['split']} label's title, nats, mean of {found['users']:,} users")
    for heading in ("part", "nats"):
        titles.add_column(heading, justify="left" if heading == "part" else "right")
    for name, value in found["losses"].items():
        titles.add_row(name, f"{value:.3f}")
    tokens = Table(title="By token")
    for heading in found["tokens"][0]:
        tokens.add_column(heading, justify="right")
    for row in found["tokens"]:
        tokens.add_row(*(f"{value:.3f}" if isinstance(value, float) else f"{value:,}" for value in row.values()))
    ranked = Table(title="Ranks of the same labels")
    metrics = list(next(iter(found["ranks"].values())))
    for heading in ("by", *metrics):
        ranked.add_column(heading, justify="left" if heading == "by" else "right")
    for name, values in found["ranks"].items():
        cells = [f"{one['value']:.3f} ±{(one['high'] - one['low']) / 2:.3f}" for one in map(values.get, metrics)]
        ranked.add_row(name, *cells)
    for table in (titles, tokens, ranked):
        console.print(table)


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="user-llm diagnose", description="Takes apart where a finished run loses on the way to a title."
    )
    parser.add_argument("--workdir", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--users", type=int, default=500, help="evenly spread; 0 = all (500)")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="whose labels (test)")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        found = diagnose(options.workdir, users=options.users, split=options.split)
        if options.output:
            with replacing(options.output) as partial:
                partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except Exception as error:
        return show(error)
    print_diagnosis(found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

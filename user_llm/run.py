"""One experiment from start to end: claim the workdir, train what is missing, evaluate, report."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import gin
import numpy as np
from ml_collections import ConfigDict

from user_llm.config import ConfigError
from user_llm.evaluation import report
from user_llm.evaluation.baselines import category_popularity_scores, item_counts, popularity_scores
from user_llm.evaluation.evaluator import (
    ShuffledContexts,
    Subset,
    encoder_scores,
    rank_by_beams,
    rank_by_scores,
    user_llm_beams,
)
from user_llm.evaluation.metrics import compare, summarise
from user_llm.experiment import Experiment
from user_llm.host import Host
from user_llm.stages import Model, run_stages

_logger = logging.getLogger(__name__)

POPULARITY = "Popularity"
CATEGORY = "Popularity in the latest category"
ENCODER = "Encoder alone"
LLM = "LLM without context"
USER_LLM = "User-LLM"
SHUFFLED = "User-LLM, shuffled contexts"

# Which differences are tested on the same users: (row, what it should beat).
_COMPARED = (
    (ENCODER, POPULARITY),
    (ENCODER, CATEGORY),
    (USER_LLM, POPULARITY),
    (USER_LLM, CATEGORY),
    (USER_LLM, ENCODER),
    (USER_LLM, LLM),
    (USER_LLM, SHUFFLED),
)


def run(config: ConfigDict, workdir: Path, host: Host) -> dict:
    """Runs `config` in `workdir` and returns what `results.json` holds.

    Raises:
      ConfigError: the workdir belongs to a run of another config.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    _claim(config, workdir)
    results_file = workdir / "results.json"
    if not results_file.exists():
        experiment = Experiment(config, workdir)
        _write_environment(experiment)
        trained = run_stages(experiment, host)
        _evaluate(experiment, trained)
    results = json.loads(results_file.read_text())
    for name, protocol in results["protocols"].items():
        report.print_table(protocol["rows"], title=f"{config.name}: {name}, {protocol['users']:,} test users")
    _logger.info("Results, predictions and checkpoints are in %s", workdir)
    return results


def _claim(config: ConfigDict, workdir: Path) -> None:
    """Writes the config into the workdir, or refuses a workdir of another one."""
    path, ours = workdir / "config.json", json.loads(config.to_json_best_effort())
    if not path.exists():
        report.write_lines(path, [json.dumps(ours, indent=2)])
        return
    theirs = json.loads(path.read_text())
    if theirs != ours:
        before, now = _flat(theirs), _flat(ours)
        changed = [
            f"config.{key} was {before.get(key)!r}, is {now.get(key)!r}"
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key)
        ]
        raise ConfigError(
            f"{workdir} holds a run of another config; name another --workdir, or delete it. " + "; ".join(changed)
        )


def _flat(tree: Mapping, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return flat


def _write_environment(experiment: Experiment) -> None:
    table, path = experiment.table, experiment.workdir / "environment.json"
    facts = {**report.provenance(table.fingerprint), "summary": table.summary}
    report.write_lines(path, [json.dumps(facts, indent=2)])
    report.write_lines(experiment.workdir / "operative_config.gin", [gin.operative_config_str()])


def _evaluate(experiment: Experiment, trained: Mapping[str, Model]) -> None:
    """Ranks the test labels under every row, and writes results.json and predictions.jsonl."""
    config = experiment.config.evaluation
    windows = experiment.windows("test")
    by_scores = dict(batch_size=config.batch_size, exclude_history=config.exclude_history)
    test = Subset.evenly(windows, config.max_users)

    held_out = [windows, *([experiment.windows("validation")] if experiment.config.data.validation else [])]
    catalogue = experiment.catalogue
    counts = item_counts(experiment.table.item, catalogue.num_items, held_out)
    ranks = {
        POPULARITY: rank_by_scores(popularity_scores(counts), test, **by_scores),
        CATEGORY: rank_by_scores(category_popularity_scores(counts, catalogue.item_categories), test, **by_scores),
    }
    if encoder := trained.get("encoder"):
        scores = encoder_scores(encoder.graphdef, encoder.buffers, experiment.mesh)
        ranks[ENCODER] = rank_by_scores(lambda batch: scores(encoder.parameters, batch), test, **by_scores)
    items = np.zeros((len(test), 0), np.int32)
    if user_llm := trained.get("user_llm"):
        found, items = _user_llm_ranks(experiment, user_llm, Subset.evenly(experiment.source("test"), config.max_users))
        ranks |= found

    batch = test.gather(np.arange(len(test)))
    full = (batch["history/item"] > 0).all(axis=1)
    length = experiment.config.data.history_length
    protocols = {f"histories of {length} events (paper)": full}
    if not full.all():
        shortest = windows.min_history
        protocols = {f"all users with a history of {shortest} or more": np.ones_like(full), **protocols}
    report.write_predictions(
        experiment.workdir,
        user_ids=[experiment.table.user_ids[user] for user in batch["user"]],
        labels=batch["label/item"],
        ranks=ranks,
        items=items,
        titles=catalogue.titles,
    )
    report.write_results(
        experiment.workdir,
        protocols={name: _summary(experiment, ranks, chosen) for name, chosen in protocols.items() if chosen.any()},
        provenance=report.provenance(experiment.table.fingerprint),
    )


def _user_llm_ranks(experiment: Experiment, model: Model, test: Subset) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Row → ranks of the rows an LLM answers, and User-LLM's answers."""
    config, trie = experiment.config.evaluation, experiment.trie

    def rank(name: str, source, with_context: bool = True) -> tuple[np.ndarray, np.ndarray]:
        beams = user_llm_beams(
            model.graphdef,
            model.parameters,
            model.buffers,
            experiment.mesh,
            trie=trie if config.constrained else None,
            eos_id=experiment.vocabulary.eos_id,
            num_beams=config.num_beams,
            max_steps=len(trie.fan_out),
            exclude_history=config.exclude_history and config.constrained,
            with_context=with_context,
        )
        read = None if config.constrained else experiment.read_titles
        return rank_by_beams(beams, source, trie, batch_size=config.batch_size, description=name, read=read)

    ranks, items = rank(USER_LLM, test)
    return {
        LLM: rank(LLM, test, with_context=False)[0],
        USER_LLM: ranks,
        SHUFFLED: rank(SHUFFLED, ShuffledContexts(test))[0],
    }, items


def _summary(experiment: Experiment, ranks: Mapping[str, np.ndarray], chosen: np.ndarray) -> dict:
    samples, seed = experiment.config.evaluation.bootstrap_samples, experiment.config.seed
    rows = {name: row[chosen] for name, row in ranks.items()}
    return {
        "users": int(chosen.sum()),
        "rows": {name: summarise(row, samples, seed) for name, row in rows.items()},
        "comparisons": {
            f"{row} - {other}": compare(rows[row], rows[other], samples, seed)
            for row, other in _COMPARED
            if row in rows and other in rows
        },
    }

"""One experiment from start to end: claim the workdir, train what is missing, evaluate, report."""

import functools
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import gin
import numpy as np
from ml_collections import ConfigDict

from user_llm.config import ConfigError, trains_categories
from user_llm.evaluation import report
from user_llm.evaluation.baselines import category_popularity_scores, popularity_scores
from user_llm.evaluation.evaluator import (
    ShuffledContexts,
    Subset,
    encoder_scores,
    rank_by_beams,
    rank_by_scores,
    user_llm_beams,
    user_llm_scores,
)
from user_llm.evaluation.metrics import compare, summarise
from user_llm.experiment import CATALOGUE, VOCABULARY, Experiment
from user_llm.host import Host
from user_llm.stages import Model, run_stages

_logger = logging.getLogger(__name__)

POPULARITY = "Popularity"
CATEGORY = "Popularity in the latest category"
ENCODER = "Encoder alone"
LLM = "LLM without context"
USER_LLM = "User-LLM"
TEXT_PROMPT = "TextPrompt"
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
    (TEXT_PROMPT, POPULARITY),
    (TEXT_PROMPT, CATEGORY),
)


def run(config: ConfigDict, workdir: Path, host: Host) -> dict:
    """Runs `config` in `workdir` and returns what `results.json` holds.

    Raises:
      ConfigError: the workdir belongs to a run of another config.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if (workdir / "config.json").exists():
        _refuse_another(config, workdir)
    else:  # nothing here belongs to a run: a config that failed its checks may have left these
        shutil.rmtree(workdir / VOCABULARY, ignore_errors=True)
        (workdir / CATALOGUE).unlink(missing_ok=True)
    results_file = workdir / "results.json"
    if not results_file.exists():
        experiment = Experiment(config, workdir)
        experiment.check()
        report.write_lines(workdir / "config.json", [json.dumps(_plain(config), indent=2)])
        _write_environment(experiment)
        trained = run_stages(experiment, host)
        _evaluate(experiment, trained)
    results = json.loads(results_file.read_text())
    for name, protocol in results["protocols"].items():
        report.print_table(protocol["rows"], title=f"{config.name}: {name}, {protocol['users']:,} test users")
        report.print_comparisons(protocol["comparisons"])
    _logger.info("Results, predictions and checkpoints are in %s", workdir)
    return results


# Where things lie on this machine: they may move between two runs. The dataset's fingerprint guards the data.
_PLACES = ("data.raw_path", "data.data_dir")


def _plain(config: ConfigDict) -> dict:
    return json.loads(config.to_json_best_effort())


def _refuse_another(config: ConfigDict, workdir: Path) -> None:
    """Raises `ConfigError` where the workdir holds a run of another config."""
    before, now = _flat(json.loads((workdir / "config.json").read_text())), _flat(_plain(config))
    changed = [
        f"config.{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted({*before, *now} - {*_PLACES})
        if before.get(key) != now.get(key)
    ]
    if changed:
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

    catalogue, counts = experiment.catalogue, experiment.item_counts
    in_category = category_popularity_scores(counts, catalogue.item_categories)
    ranks = {
        POPULARITY: rank_by_scores(popularity_scores(counts), test, **by_scores)[0],
        CATEGORY: rank_by_scores(in_category, test, **by_scores)[0],
    }
    if (encoder := trained.get("encoder")) and not trains_categories(experiment.config):
        scores = encoder_scores(encoder.graphdef, encoder.buffers, experiment.mesh)
        ranks[ENCODER] = rank_by_scores(lambda batch: scores(encoder.parameters, batch), test, **by_scores)[0]
    items = np.zeros((len(test), 0), np.int32)
    if user_llm := trained.get("user_llm"):
        found, items = _user_llm_ranks(experiment, user_llm, Subset.evenly(experiment.source("test"), config.max_users))
        ranks |= found

    batch = test.gather(np.arange(len(test)))
    facts = {}
    if user_llm and experiment.config.data.text_history:
        _, _, dropped = experiment.prompts.build(batch["history/item"])
        facts["dropped_events"] = float(dropped.mean())
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
        facts=facts,
        provenance=report.provenance(experiment.table.fingerprint),
    )


def _user_llm_ranks(experiment: Experiment, model: Model, test: Subset) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Row → ranks of the rows an LLM answers, and User-LLM's answers."""
    config, trie = experiment.config.evaluation, experiment.answer_trie
    parts = (model.graphdef, model.parameters, model.buffers, experiment.mesh)
    eos_id = experiment.vocabulary.eos_id

    def ranker(with_context: bool):
        """Compiled once for all rows that read a context, and once for the one that does not."""
        if config.answers == "exact":
            scores = user_llm_scores(*parts, trie=trie, eos_id=eos_id, with_context=with_context)
            return functools.partial(
                rank_by_scores, scores, batch_size=config.batch_size, exclude_history=config.exclude_history
            )
        beams = user_llm_beams(
            *parts,
            trie=trie,
            constrained=config.constrained,
            num_beams=config.num_beams,
            max_steps=len(trie.fan_out),
            exclude_history=config.exclude_history,
            with_context=with_context,
            eos_id=eos_id,
        )
        read = None if config.constrained else experiment.read_titles
        return functools.partial(rank_by_beams, beams, trie=trie, batch_size=config.batch_size, read=read)

    if experiment.config.integration.kind == "none":
        ranks, items = ranker(False)(test, description=TEXT_PROMPT)
        return {TEXT_PROMPT: ranks}, items
    with_context = ranker(True)
    ranks, items = with_context(test, description=USER_LLM)
    return {
        LLM: ranker(False)(test, description=LLM)[0],
        USER_LLM: ranks,
        SHUFFLED: with_context(ShuffledContexts(test), description=SHUFFLED)[0],
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

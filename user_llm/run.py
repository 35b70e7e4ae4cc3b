"""One experiment from start to end: claim the workdir, train what is missing, evaluate, report.

Several processes run all of this; the lead alone writes and prints. What is looked up in the workdir decides what all
of them do next, so the lead writes it only after a wait for all, or after a computation in which all take part.
"""

import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gin
from ml_collections import ConfigDict

from user_llm.config import task_names
from user_llm.evaluation import report
from user_llm.evaluation.leaks import as_results
from user_llm.experiment.borrowed import contents
from user_llm.experiment.experiment import Experiment
from user_llm.experiment.ownership import is_finished, owning
from user_llm.experiment.prepare import prepare
from user_llm.experiment.seal import claim, refuse_swapped, seal
from user_llm.experiment.training import run_stages
from user_llm.experiment.workdir import ENVIRONMENT, OPERATIVE_GIN, RESULTS, REWRITTEN, defining
from user_llm.host import Host
from user_llm.inspect.audit import audit
from user_llm.inspect.cost import training_costs
from user_llm.models.model import Model
from user_llm.parallel.accelerators import unused
from user_llm.parallel.own_devices import on_own_devices
from user_llm.parallel.processes import check_same, is_lead, lead_makes, lead_says
from user_llm.tasks import Evaluation
from user_llm.tasks.rows import item_rankers

_logger = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path, host: Host) -> dict:
    """Runs `config` in `workdir` and returns what `results.json` holds.

    Raises:
      Busy: another process works in the workdir.
      UserError: the workdir holds a run of another config, a damaged one, or files of somebody else.
    """
    check_same(json.dumps(defining(config)), "config")
    if not is_finished(workdir, config):
        with owning(workdir, config) as finished_meanwhile:
            if not finished_meanwhile:
                _make_results(Experiment(config, workdir), host)
    results = json.loads((workdir / RESULTS).read_text())
    if is_lead():
        _print(config, results)
        _logger.info("Results, predictions and checkpoints are in %s", workdir)
    return results


def _make_results(experiment: Experiment, host: Host) -> None:
    workdir = experiment.workdir
    if idle := unused():
        _logger.warning("%s", idle)
    borrowed = lead_says(lambda: contents(experiment.config))
    lead_says(lambda: refuse_swapped(workdir, experiment.config, borrowed))
    prepare(experiment)
    if is_lead():
        claim(workdir, experiment.config, borrowed)
        _write_environment(experiment)
    trained = {name: on_own_devices(model) for name, model in run_stages(experiment, host).items()}
    found = _evaluate(experiment, trained)
    findings = audit(experiment, item_rankers(experiment, trained))
    facts = {**found.facts, "training": training_costs(experiment, trained), "audit": as_results(findings)}

    def write() -> None:
        report.write_predictions(workdir, found.predictions)
        provenance = report.provenance(experiment.fingerprint)
        report.write_results(workdir, protocols=found.protocols, facts=facts, provenance=provenance)
        seal(workdir, *REWRITTEN)

    lead_makes(workdir / RESULTS, write)


def _evaluate(experiment: Experiment, trained: Mapping[str, Model]) -> Evaluation:
    """What every task finds; where there are several, under its name."""
    several = len(experiment.tasks) > 1
    protocols: dict[str, Any] = {}
    predictions: list[Iterable[Mapping[str, Any]]] = []
    facts: dict[str, Any] = {}
    for task in experiment.tasks:
        found = task.evaluate(experiment, trained)
        of_task = {"task": task.name, "headline": task.headline}
        for name, protocol in found.protocols.items():
            protocols[f"{task.name}: {name}" if several else name] = {**of_task, **protocol}
        predictions.append(_of_task(task.name, found.predictions) if several else found.predictions)
        facts |= {task.name: found.facts} if several else found.facts
    return Evaluation(protocols, itertools.chain.from_iterable(predictions), facts)


def _of_task(task: str, predictions: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    return ({"task": task, **line} for line in predictions)


def _print(config: ConfigDict, results: Mapping) -> None:
    for name, protocol in results["protocols"].items():
        which = name if "," in config.task else f"{config.task}: {name}"
        report.print_table(protocol["rows"], title=f"{config.name}, {which}, {protocol['users']:,} test users")
        report.print_comparisons(protocol["comparisons"], protocol["headline"])
    for facts in (results, *(results.get(task, {}) for task in task_names(config))):
        if "samples" in facts:
            report.print_samples(facts["samples"])
    for name, check in results["audit"]["checks"].items():
        if check["verdict"] != "pass":
            _logger.warning("Audit, %s", "{verdict}: {0}: {count:,} of {of:,}: {detail}".format(name, **check))


def _write_environment(experiment: Experiment) -> None:
    table, path = experiment.table, experiment.workdir / ENVIRONMENT
    facts = {**report.provenance(table.fingerprint), "summary": table.summary}
    report.write_lines(path, [json.dumps(facts, indent=2)])
    report.write_lines(experiment.workdir / OPERATIVE_GIN, [gin.operative_config_str()])

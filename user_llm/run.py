"""One experiment from start to end: claim the workdir, train what is missing, evaluate, report.

Several processes run all of this; the lead alone writes and prints. What is looked up in the workdir decides what all
of them do next, so the lead writes it only after a wait for all, or after a computation in which all take part.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import gin
from ml_collections import ConfigDict

from user_llm.audit import audit
from user_llm.config import ConfigError
from user_llm.cost import training_costs
from user_llm.evaluation import report
from user_llm.evaluation.leaks import as_results
from user_llm.experiment import CATALOGUE, VOCABULARY, Experiment
from user_llm.host import Host
from user_llm.parallel.processes import check_same, is_lead, lead_makes
from user_llm.stages import run_stages
from user_llm.task_evaluation import HEADLINES, evaluate, rankers

_logger = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path, host: Host) -> dict:
    """Runs `config` in `workdir` and returns what `results.json` holds.

    Raises:
      ConfigError: the workdir belongs to a run of another config.
    """
    check_same(json.dumps(_defining(_plain(config))), "config")
    results_file = workdir / "results.json"
    if (workdir / "config.json").exists():
        _refuse_another(config, workdir)
    elif is_lead():  # nothing here belongs to a run: a config that failed its checks may have left these
        workdir.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(workdir / VOCABULARY, ignore_errors=True)
        (workdir / CATALOGUE).unlink(missing_ok=True)
    if not results_file.exists():
        _make_results(Experiment(config, workdir), host, results_file)
    results = json.loads(results_file.read_text())
    if is_lead():
        _print(config, results)
        _logger.info("Results, predictions and checkpoints are in %s", workdir)
    return results


def _make_results(experiment: Experiment, host: Host, results_file: Path) -> None:
    workdir = experiment.workdir
    experiment.check()
    if is_lead():
        report.write_lines(workdir / "config.json", [json.dumps(_plain(experiment.config), indent=2)])
        _write_environment(experiment)
    trained = run_stages(experiment, host)
    found = evaluate(experiment, trained)
    findings = audit(experiment, rankers(experiment, trained))
    facts = {**found.facts, "training": training_costs(experiment, trained), "audit": as_results(findings)}

    def write() -> None:
        report.write_predictions(workdir, found.predictions)
        provenance = report.provenance(experiment.table.fingerprint)
        report.write_results(workdir, protocols=found.protocols, facts=facts, provenance=provenance)

    lead_makes(results_file, write)


def _print(config: ConfigDict, results: Mapping) -> None:
    for name, protocol in results["protocols"].items():
        title = f"{config.name}, {config.task}: {name}, {protocol['users']:,} test users"
        report.print_table(protocol["rows"], title=title)
        report.print_comparisons(protocol["comparisons"], HEADLINES[config.task])
    if "samples" in results:
        report.print_samples(results["samples"])
    for name, check in results["audit"]["checks"].items():
        if check["verdict"] != "pass":
            _logger.warning("Audit, %s", "{verdict}: {0}: {count:,} of {of:,}: {detail}".format(name, **check))


# Where things lie on this machine: they may move between two runs. The dataset's fingerprint guards the data.
_PLACES = ("data.raw_path", "data.data_dir")


def _plain(config: ConfigDict) -> dict:
    return json.loads(config.to_json_best_effort())


def _defining(config: Mapping) -> dict[str, object]:
    """Dotted key → value, of all that two starts of one run have in common."""
    return {key: value for key, value in _flat(config).items() if key not in _PLACES}


def _refuse_another(config: ConfigDict, workdir: Path) -> None:
    """Raises `ConfigError` where the workdir holds a run of another config."""
    before, now = _defining(json.loads((workdir / "config.json").read_text())), _defining(_plain(config))
    changed = [
        f"config.{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted({*before, *now})
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

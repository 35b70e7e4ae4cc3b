"""Our encoder, trained as a run trains it, with the same curve and ranks as `rectools_quality`.

python -m benchmarks.contenders.jax_quality '{"config": "configs/ml_1m.py", "overrides": {…}, "folder": …}'
"""

import dataclasses
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality_files import experiment_of
from user_llm.evaluation.evaluator import rank_by_scores
from user_llm.evaluation.metrics import ranking_metrics
from user_llm.evaluation.users import encoder_scores
from user_llm.experiment.stages import STAGES
from user_llm.host import Host
from user_llm.models.model import Model
from user_llm.training.loop import train


def main(options: dict[str, Any]) -> None:
    """Resumes where an earlier start of it was stopped."""
    folder = Path(options["folder"])
    experiment = experiment_of(options["config"], {**options["overrides"], "evaluation.exclude": "timeline"}, folder)
    config, stage = experiment.config, STAGES["encoder"]
    batch_size, curve = config.evaluation.batch_size, folder / "curve.jsonl"
    validation = stage.validation_source(experiment, lambda source: source)
    # What an earlier start has taken; its last steps may be computed again.
    ranking, started = 0.0, time.perf_counter()
    before = json.loads(curve.read_text().splitlines()[-1])["seconds"] if curve.is_file() else 0.0

    def evaluate(model: Model) -> dict[str, float]:
        nonlocal ranking
        begun = time.perf_counter()
        ranks, _ = rank_by_scores(encoder_scores(model), validation, batch_size=batch_size, exclude_seen=True)
        measured = {name: float(values.mean()) for name, values in ranking_metrics(ranks).items()}
        row = {"seconds": round(before + begun - started - ranking, 2)}
        row |= {f"unseen/{name}": value for name, value in measured.items()}
        with curve.open("a") as file:
            file.write(json.dumps(row) + "\n")
        ranking += time.perf_counter() - begun
        return {**measured, "loss": 0.0}

    run = stage.training_run(experiment, stage.initial(experiment, {}))
    model = train(dataclasses.replace(run, evaluate=evaluate), folder / "encoder", seed=config.seed, host=Host())
    test = experiment.windows("test")
    users = test.users(np.arange(len(test)))
    scores, shared = encoder_scores(model), dict(batch_size=batch_size)
    ranks = {
        name: rank_by_scores(scores, test, exclude_seen=exclude, **shared)[0]
        for name, exclude in (("unseen", True), ("all", False))
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    np.savez(folder / "ranks.npz", users=users, peak_bytes=peak, **ranks)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

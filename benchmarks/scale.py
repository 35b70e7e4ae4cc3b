"""From measured rates to hosts and hours: what small runs take, what larger ones should take by that, and what they do.

    python -m benchmarks --only=scale [--scale_sizes=20000,60000,200000] [--scale_fit=5000,30000] \
        [--scale_catalogues=100000,1000000,10000000]

The rates are of runs at the sizes of `--scale_fit`. A size is predicted before its run starts. Seconds are those of
cores, not of the clock: another program on the machine then changes them little. Steps of large catalogues are timed
by the clock.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cached_files import say
from benchmarks.catalogue_steps import measure_catalogues
from benchmarks.scale_hosts import BILLION, V5E, plan
from benchmarks.scale_model import LINES, Held, Size, fit, hold, predict
from benchmarks.scale_rates import measure_rates
from benchmarks.scale_runs import make_run, measure_run

EVENTS_PER_USER, ITEMS = 45, 2_000
_CATALOGUE_ROUNDS = 5


def measure_scale(
    fitted: Sequence[int], tested: Sequence[int], catalogues: Sequence[int], folder: Path
) -> dict[str, Any]:
    """Rates, predictions beside what was measured, and what a billion users take by the rates.

    Args:
      fitted: users of the runs that the rates are of; at least two.
      tested: users of the runs that are predicted; none of `fitted`.
      catalogues: items that a step of the encoder is timed with.
      folder: for all files; the run that makes vectors is kept there for the next time.

    Returns:
      JSON values.

    Raises:
      ValueError: a size is fitted and tested, or too few are fitted.
    """
    if set(fitted) & set(tested) or len(set(fitted)) < 2:
        raise ValueError(f"fit at two sizes or more, and test at others: got {list(fitted)} and {list(tested)}.")
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {users: Size(users, EVENTS_PER_USER, ITEMS) for users in (*fitted, *tested)}
    make_run(sizes[fitted[0]], folder)
    runs = {users: measure_run(sizes[users], folder) for users in fitted}
    rates = fit([sizes[users] for users in fitted], list(runs.values()))
    held: list[Held] = []
    for users in tested:
        predicted = predict(rates, sizes[users])
        say(f"{users:,} users: " + ", ".join(f"{name} {value:,.1f}" for name, value in predicted.items()))
        runs[users] = measure_run(sizes[users], folder)
        held += hold(predicted, runs[users], sizes[users])
    # What has been held against runs is then fitted to all of them, to look as far as it can.
    of_all = fit([sizes[users] for users in runs], list(runs.values())) | measure_rates(sizes[fitted[0]], folder)
    return {
        "sizes": [dataclasses.asdict(size) for size in sizes.values()],
        "fitted": list(fitted),
        "rates": rates,
        "rates_of_all": of_all,
        "names": {line.name: list(line.rates) for line in LINES},
        "runs": {str(users): run for users, run in runs.items()},
        "held": [{**dataclasses.asdict(one), "ratio": one.ratio, "within": one.within} for one in held],
        "billion": [dataclasses.asdict(step) for step in plan(of_all, BILLION, V5E)],
        "catalogues": measure_catalogues(catalogues, _CATALOGUE_ROUNDS),
    }

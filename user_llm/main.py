"""Runs an experiment: `user-llm train --config=simulated --workdir=runs/demo`, or from the clone
`python -m user_llm.main --config=configs/simulated.py --workdir=runs/demo`.

The stages the config names are trained in order, the result is evaluated on the test windows, and the table of
results is printed. Run the same command again: finished stages are skipped, a broken one resumes.

On several hosts start the same command on each, with a workdir that all share: `srun python -m user_llm.main …` in
SLURM, with `--distributed` on the workers of a Cloud TPU slice, and elsewhere with `--coordinator=HOST:PORT
--num_processes=2 --process_id=0` (and 1 on the other). Where one of them ends, so do the others; start all again.

Exit status: 0 finished; 1 refused or failed; 2 a wrong command line or config; 75 another process works in the workdir,
or builds the dataset; 143 or 130 stopped by SIGTERM or Ctrl-C, and the same command goes on.
"""

import functools
import io
import logging
import signal
import sys
from typing import cast

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from user_llm import command_line, run
from user_llm.config import ConfigError
from user_llm.errors import show
from user_llm.experiment.validation import validate
from user_llm.host import Host, bound_host
from user_llm.inspect.audit import audit_config
from user_llm.inspect.compiled import HERE, print_compiled
from user_llm.inspect.dry_run import print_dry_run
from user_llm.parallel import processes
from user_llm.paths import local_path

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment: a file, or the name of a config of ours, as simulated. Override a key with --config.<key>=<value>.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run: checkpoints, metrics, results.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Build the models abstractly, print parameters and memory, and stop.")
_AUDIT = flags.DEFINE_bool("audit", False, "Look for leaks in the built dataset and the actual batches, and stop.")
_COMPILE_FOR = flags.DEFINE_string(
    "compile_for",
    None,
    "Compile the training steps for the devices of a TPU slice, as v5e:2x4, none of which need be here, or for those "
    "that are, with here; print what a step takes on each, and stop.",
)
_GIN_FILE = flags.DEFINE_multi_string("gin_file", [], "gin files with wiring of the host (configs/gin/).")
_GIN = flags.DEFINE_multi_string("gin", [], 'gin bindings, e.g. --gin="Host.tensorboard=False".')
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Of a run of several processes: HOST:PORT on which process 0 listens, the same for all."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes run this command together.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is: 0 (it writes the results), 1, ….")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    None,
    "Whether to join the processes that SLURM, Cloud TPU, GKE or Open MPI has started, without the three flags above. "
    "By default a SLURM step of several tasks and a TPU slice of several hosts on GKE are joined; say --distributed on "
    "the workers of a Cloud TPU slice, and --nodistributed for SLURM tasks that are runs of their own.",
)

_INTERRUPTED = 128 + signal.SIGINT

_logger = logging.getLogger("user_llm")


def main(_) -> None:
    _log_to_stderr()
    # A terminal of ASCII: titles with "?" instead of an error at the end.
    cast(io.TextIOWrapper, sys.stdout).reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, _stop)  # while a stage trains, the loop has its own; several processes have JAX's
    try:
        if (_COMPILE_FOR.value or HERE) != HERE:
            jax.config.update("jax_platforms", "cpu")  # with libtpu it would look for a TPU
        processes.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _DISTRIBUTED.value)
        if not processes.is_lead():
            _logger.setLevel(logging.WARNING)
        _run(bound_host(_GIN_FILE.value, _GIN.value))
    except processes.Preempted as message:
        _logger.info("%s", message)
        sys.exit(processes.STOPPED)
    except KeyboardInterrupt:
        _logger.info("Stopped. The same command goes on from the last checkpoint.")
        sys.exit(_INTERRUPTED)
    except Exception as error:
        processes.end_if_lost(error)
        sys.exit(show(error))
    finally:
        processes.leave()


def _run(host: Host) -> None:
    if host.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", host.compilation_cache)
    looks = {"--dry_run": _DRY_RUN.value, "--audit": _AUDIT.value, "--compile_for": _COMPILE_FOR.value}
    if len(named := [name for name, value in looks.items() if value]) > 1:
        raise ConfigError(f"{' and '.join(named)}: each looks at the experiment and stops; name one of them")
    for look in ("--audit", "--compile_for"):
        if look in named and processes.several():
            raise ConfigError(f"{look} reads data on one host: start it as one process")
    if _DRY_RUN.value:
        print_dry_run(_CONFIG.value)
    elif _COMPILE_FOR.value:
        if not print_compiled(_CONFIG.value, _WORKDIR.value, _COMPILE_FOR.value):
            sys.exit("error: a step does not fit; see above")
    elif _AUDIT.value:
        if audit_config(_CONFIG.value, _WORKDIR.value) == "leaks":
            sys.exit("error: something leaks; see the checks that failed")
    elif not _WORKDIR.value:
        raise ConfigError("name the folder of this run: --workdir=runs/…")
    else:
        run.run(_CONFIG.value, local_path(_WORKDIR.value, "--workdir"), host)
    processes.wait_for_all("end")


def _stop(*_) -> None:
    _logger.info("Stopped. The same command goes on from the last checkpoint.")
    sys.exit(processes.STOPPED)


def _log_to_stderr() -> None:
    """Our own lines at INFO; of the libraries nothing: they raise what is wrong. --verbosity=1: DEBUG, and errors."""
    told = absl_logging.get_verbosity() > 0
    level = logging.DEBUG if told else logging.INFO
    absl_logging.set_verbosity(absl_logging.ERROR if told else absl_logging.FATAL)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    _logger.setLevel(level)
    _logger.addHandler(handler)
    _logger.propagate = False


def cli() -> None:
    """Entry point."""
    app.run(main, flags_parser=functools.partial(command_line.flags_parser, validate=validate))


if __name__ == "__main__":
    cli()

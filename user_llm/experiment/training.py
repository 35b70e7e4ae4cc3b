"""Trains the stages of an experiment, or restores them when they are finished."""

from collections.abc import Mapping

from user_llm.experiment.experiment import Experiment
from user_llm.experiment.parameter_table import print_parameter_table
from user_llm.experiment.seal import is_sealed, seal
from user_llm.experiment.stages import STAGES, stages_of
from user_llm.experiment.stages.encoder import second_encoder
from user_llm.host import Host
from user_llm.models.model import Model
from user_llm.parallel.processes import is_lead, wait_for_all
from user_llm.training.loop import train

Models = dict[str, Model]


def run_stages(experiment: Experiment, host: Host) -> Models:
    """Trains, resumes or restores every stage the config names; returns their finished models by stage.

    With `evaluation.second_encoder` that one is there, too, under `second_encoder`.
    """
    config, finished = experiment.config, _borrowed(experiment)
    for stage in stages_of(config):
        run = stage.training_run(experiment, stage.initial(experiment, finished))
        print_parameter_table(experiment.assembly, stage, run.model.parameters, run.axes, experiment.mesh)
        finished[stage.name] = train(run, experiment.workdir / stage.name, seed=config.seed, host=host)
        left = stage.export(experiment, finished[stage.name])
        if left and is_lead() and not is_sealed(experiment.workdir, left):
            seal(experiment.workdir, left)
        wait_for_all(f"{stage.name} is exported")
    if second := second_encoder(experiment):
        finished["second_encoder"] = second
    return finished


class RestoredStages(Mapping[str, Model]):
    """The models of a finished run by stage, without its data, optimizer or metrics; each is read when it is asked for.

    A stage that has trained every parameter asks for none before it.

    Raises, where one is asked for:
      NoRun: the stage has no checkpoint, or none of its last step yet.
      UserError: its checkpoint is damaged.
    """

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        self._models = _borrowed(experiment)
        self._stages = {stage.name: stage for stage in stages_of(experiment.config)}

    def __getitem__(self, name: str) -> Model:
        if name not in self._models:
            self._models[name] = self._stages[name].restore(self._experiment, self)
        return self._models[name]

    def __iter__(self):
        return iter({**self._models, **self._stages})

    def __len__(self):
        return len({**self._models, **self._stages})


def _borrowed(experiment: Experiment) -> Models:
    borrowed = {stage.name: stage.borrowed(experiment) for stage in STAGES}
    return {name: model for name, model in borrowed.items() if model is not None}

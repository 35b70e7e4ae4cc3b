"""What the paper's experiments on all datasets share; `configs/ml20m.py` and its siblings add their own.

The LLM's dims are of a small one that is trained from scratch where no checkpoint is named: PaLM-2 XXS is not public.

A task with `+learnt` behind it has what we learnt on MovieLens-1M and Amazon Beauty in place of some of the paper's
values. docs/reproduce.md names each.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from user_llm import schema
from user_llm.errors import UserError

LEARNT = "+learnt"
DENSE = dict(dropout=0.2, learning_rate=3e-3, targets=8)  # as configs/ml_1m.py
SPARSE = dict(dropout=0.6, learning_rate=1e-2, targets=4)  # as configs/amazon_beauty.py


def experiment(name: str, dataset: str, task: str, encoder: Mapping, tasks: Mapping[str, Mapping], learnt: Mapping):
    """An experiment of the paper.

    Args:
      name, dataset: of the experiment.
      task: which of `tasks`; with `LEARNT` behind it, with what we learnt.
      encoder: keys of stage `encoder` (appendix C).
      tasks: task → keys of stage `user_llm` (appendix C).
      learnt: which of `DENSE` and `SPARSE` its users are like.

    Raises:
      UserError: `task` is not one of the experiment's.
    """
    task, plus, rest = task.partition(LEARNT)
    if task not in tasks or rest:
        raise UserError(
            f"{task + plus + rest!r} is no task of {name}: expected one of {', '.join(tasks)}, each also with "
            f"{LEARNT} behind it"
        )
    config = schema.get_config()
    config.name = name
    config.task = task
    config.data.dataset = dataset
    config.data.history_length = 50
    config.encoder.num_layers = 6
    config.encoder.width = 128
    config.encoder.num_heads = 8
    config.encoder.hidden = 512
    config.encoder.chunk_rows = 8192
    config.llm.vocabulary_size = 8192
    config.llm.num_layers = 8
    config.llm.width = 512
    config.llm.num_heads = 8
    config.llm.num_kv_heads = 4
    config.llm.head_dim = 64
    config.llm.hidden = 1536
    config.integration.every = 2
    config.integration.num_heads = 8
    config.integration.head_dim = 64
    config.integration.hidden = 1024
    config.compute.dtype = "bfloat16"
    config.compute.scan_layers = True
    config.compute.remat = True
    config.training.llm = schema.training(
        steps=5_000, batch_size=1024, learning_rate=1e-3, weight_decay=1e-2, eval_every=1000, checkpoint_every=1000
    )
    often = dict(eval_every=1000, checkpoint_every=1000)
    config.training.encoder = schema.training(keep_best="recall@10", **often, **encoder)
    config.training.user_llm = schema.training(keep_best="loss", learning_rate=1e-3, **often, **tasks[task])
    config.evaluation.batch_size = 512
    config.evaluation.exclude = "nothing"  # as the paper
    if task == "review_generation":
        config.prompt.max_inputs = 128  # title, category and rating
        config.prompt.max_targets = 64
    if plus:
        _take_over(config, **learnt)
    return config


def _take_over(config: ConfigDict, dropout: float, learning_rate: float, targets: int) -> None:
    """Replaces the paper's values by what did better on MovieLens-1M and Amazon Beauty (docs/results/log.md)."""
    config.data.min_history = 1
    config.encoder.dropout = dropout
    config.encoder.stride = config.data.history_length
    # Windows that do not overlap: as many steps as the paper's see an event about 25 times.
    config.training.encoder.update(learning_rate=learning_rate, weight_decay=1e-2, batch_size=1024)
    if config.task == "next_item":
        config.encoder.features = ("item",)
        config.integration.newest = 1
        config.integration.spelling_steps = config.training.user_llm.steps // 4
        config.integration.within_catalogue = True
        config.integration.targets = targets
        config.integration.whole_every = 4
        config.integration.label_contexts = 0.1
        config.integration.distillation = 1.0
        config.integration.encoder_dropout = False
        config.integration.rates.encoder = 0.0
        config.training.user_llm.update(batch_size=256, keep_best="")
        config.evaluation.answers = "fused"
        config.evaluation.exclude = "timeline"
        config.evaluation.num_beams = 50

"""What the paper's experiments on all datasets share; `configs/ml20m.py` and its siblings add their own.

The LLM's dims are of a small one that is trained from scratch where no checkpoint is named: PaLM-2 XXS is not public.
"""

from collections.abc import Mapping

from user_llm import schema
from user_llm.errors import UserError


def experiment(name: str, dataset: str, task: str, encoder: Mapping, tasks: Mapping[str, Mapping]):
    """An experiment of the paper.

    Args:
      name, dataset: of the experiment.
      task: which of `tasks`.
      encoder: keys of stage `encoder` (appendix C).
      tasks: task → keys of stage `user_llm` (appendix C).

    Raises:
      UserError: `task` is not one of the experiment's.
    """
    if task not in tasks:
        raise UserError(f"{task!r} is no task of {name}: expected one of {', '.join(tasks)}")
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
    return config

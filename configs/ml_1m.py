"""MovieLens-1M, all of 6,040 users, leave-one-out: dense data.

python -m user_llm.main --config=configs/ml_1m.py --workdir=runs/ml_1m "--config.stages=('encoder',)"
"""

from user_llm import schema


def get_config(task="next_item"):
    config = schema.get_config()
    config.name = "ml_1m"
    config.task = task
    config.data.dataset = "movielens/1m"
    config.data.history_length = 200
    config.data.min_history = 1
    config.encoder.features = ("item",)
    config.encoder.num_layers = 2
    config.encoder.width = 128
    config.encoder.num_heads = 2
    config.encoder.hidden = 512
    config.encoder.dropout = 0.2
    config.encoder.stride = 200
    often = dict(eval_every=200, checkpoint_every=200, log_every=50)
    config.training.encoder = schema.training(
        steps=4000, batch_size=64, keep_best="recall@10", weight_decay=1e-2, **often
    )
    config.evaluation.batch_size = 128
    config.evaluation.exclude = "timeline"
    return config

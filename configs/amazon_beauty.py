"""Amazon Beauty of 2014, 5-core (22,363 users, 12,101 items): sparse data, where most users have six events.

    user-llm build custom/beauty --files interactions.csv --columns user=user item=item timestamp=timestamp \
        --items items.csv --item_columns item=item title=title category=category
    python -m user_llm.main --config=configs/amazon_beauty.py --workdir=runs/beauty "--config.stages=('encoder',)"
"""

from user_llm import schema


def get_config(task="next_item"):
    config = schema.get_config()
    config.name = "amazon_beauty"
    config.task = task
    config.data.dataset = "custom/beauty"
    config.data.history_length = 50
    config.data.min_history = 1
    config.encoder.features = ("item",)
    config.encoder.num_layers = 2
    config.encoder.width = 64
    config.encoder.num_heads = 2
    config.encoder.hidden = 256
    config.encoder.dropout = 0.5
    config.encoder.stride = 50
    often = dict(eval_every=200, checkpoint_every=200, log_every=50)
    config.training.encoder = schema.training(
        steps=4000, batch_size=256, keep_best="recall@10", weight_decay=1e-2, **often
    )
    config.evaluation.batch_size = 256
    return config

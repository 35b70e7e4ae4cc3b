"""MovieLens latest-small (610 users, 100,836 ratings): real data that trains on a laptop's two cores.

    python -m user_llm.main --config=configs/ml_latest_small.py --workdir=runs/ml_latest_small \
        [--config.data.raw_path=ml-latest-small.zip]

Histories of up to 50 events; shorter ones are admitted, so that every user is tested (all-users leave-one-out), and
the users with a full history of 50 are reported besides (the paper's protocol).

`configs/ml_latest_small.py:favorite_category` predicts the favourite genre.

Well under 40 minutes on two cores. Expect Recall@10 of 0.08 (all users) and 0.05 (full histories) for the encoder
alone, against 0.04 and 0.02 for the stronger popularity row; User-LLM, with a small LLM from scratch, stays near 0.01.
"""

from user_llm import schema


def get_config(task="next_item"):
    config = schema.get_config()
    config.name = "ml_latest_small"
    config.task = task
    config.data.dataset = "movielens/latest_small"
    config.data.history_length = 50
    config.data.min_history = 1
    config.prompt.max_targets = 24
    config.encoder.num_layers = 2
    config.encoder.width = 64
    config.encoder.num_heads = 2
    config.encoder.hidden = 256
    config.encoder.dropout = 0.2
    config.llm.vocabulary_size = 4096
    config.llm.num_layers = 4
    config.llm.width = 128
    config.llm.max_length = 64
    config.training.llm = schema.training(
        steps=1500, batch_size=64, learning_rate=4e-3, weight_decay=1e-2, eval_every=500, checkpoint_every=500
    )
    config.training.encoder = schema.training(
        steps=800,
        batch_size=128,
        learning_rate=1e-3,
        weight_decay=1e-1,
        eval_every=200,
        checkpoint_every=200,
        keep_best="recall@10",
    )
    config.training.user_llm = schema.training(
        steps=1200,
        batch_size=128,
        learning_rate=2e-3,
        weight_decay=1e-2,
        eval_every=200,
        checkpoint_every=200,
        keep_best="loss",
    )
    return config

"""The smallest experiment that still has all three stages: a few seconds a stage."""

from user_llm import schema


def get_config():
    config = schema.get_config()
    config.name = "tiny"
    config.data.dataset = "movielens/simulated"
    config.data.simulated.num_users = 48
    config.data.simulated.num_items = 60
    config.data.simulated.mean_events = 26
    config.data.history_length = 24
    config.data.min_history = 4
    config.encoder.num_layers = 1
    config.encoder.width = 16
    config.encoder.num_heads = 2
    config.encoder.hidden = 32
    config.encoder.dropout = 0.1
    config.llm.vocabulary_size = 400
    config.llm.num_layers = 2
    config.llm.width = 32
    config.llm.num_heads = 2
    config.llm.num_kv_heads = 1
    config.llm.head_dim = 16
    config.llm.hidden = 64
    config.integration.every = 2
    config.integration.num_heads = 2
    config.integration.head_dim = 16
    config.integration.hidden = 32
    common = dict(batch_size=16, log_every=2, eval_every=6, checkpoint_every=6)
    config.training.llm = schema.training(steps=12, **common)
    config.training.encoder = schema.training(steps=18, keep_best="recall@10", **common)
    config.training.user_llm = schema.training(steps=18, keep_best="loss", accumulate=2, **common)
    config.evaluation.batch_size = 24
    config.evaluation.bootstrap_samples = 50
    return config

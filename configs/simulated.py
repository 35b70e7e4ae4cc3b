"""The embedded default: simulated users in MovieLens' own file format, no download, a few minutes on two cores.

    python -m user_llm.main --config=configs/simulated.py --workdir=runs/demo        (what `make demo` runs)

`configs/simulated.py:favorite_category` and `:review_generation` are the other tasks; the other datasets are
`--config.data.dataset=amazon_reviews/simulated` and `google_local/simulated` (reviews need one of these).

All three stages: a small LM from scratch, the user encoder, the contextualised LLM; then the results table. On two
idle cores about 3 minutes. Expect Recall@10 of 0.05 for popularity, 0.57 for the encoder alone, 0.54 for User-LLM,
and 0.02 for User-LLM with shuffled contexts.
"""

from user_llm import schema


def get_config(task="next_item"):
    config = schema.get_config()
    config.name = "simulated"
    config.task = task
    config.data.dataset = "movielens/simulated"
    config.data.data_dir = "runs/data"
    config.data.history_length = 20
    config.encoder.num_layers = 2
    config.encoder.width = 64
    config.encoder.num_heads = 4
    config.encoder.hidden = 128
    config.llm.vocabulary_size = 1024
    config.llm.num_layers = 2
    config.llm.width = 128
    config.llm.num_heads = 4
    config.llm.num_kv_heads = 2
    config.llm.head_dim = 32
    config.llm.hidden = 256
    config.integration.hidden = 128
    config.training.llm = schema.training(
        steps=200, batch_size=64, learning_rate=2e-3, weight_decay=1e-2, eval_every=100, checkpoint_every=100
    )
    config.training.encoder = schema.training(
        steps=600,
        batch_size=128,
        learning_rate=3e-3,
        weight_decay=1e-2,
        eval_every=200,
        checkpoint_every=200,
        keep_best="recall@10",
    )
    config.training.user_llm = schema.training(
        steps=500,
        batch_size=128,
        learning_rate=2e-3,
        weight_decay=1e-3,
        eval_every=250,
        checkpoint_every=250,
        keep_best="loss",
    )
    config.evaluation.batch_size = 100
    if "review_generation" in task:  # alone, or of several: "next_item,review_generation"
        config.prompt.max_inputs = 96  # title, category and rating
        config.prompt.max_targets = 64
        config.training.user_llm.update(steps=250, eval_every=125, checkpoint_every=125)  # longer, and sooner learnt
    return config

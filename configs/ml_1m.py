"""MovieLens-1M: 6,040 users with 165 events on average, 3,883 movies, everybody asked for the last one.

    python -m user_llm.main --config=configs/ml_1m.py --workdir=runs/ml_1m "--config.stages=('encoder',)" \
        [--config.data.raw_path=ml-1m.zip]

The encoder is SASRec with a softmax over the whole catalogue, of 200 events. On one core of an AMD EPYC it takes
twenty minutes: Recall@10 .332 and NDCG@10 .192 of all users (three seeds), what they have seen left out. With
--config.encoder.time=past, the gaps between events, .340 and .197 (one seed); with --config.encoder.time=asked, which
tells it when the asked event was (as HSTU is told), .377 and .228.
docs/results/log.md has what these figures rest on.

With all three stages (leave --config.stages out) it takes an hour on two cores, and its evaluation some minutes a
row. User-LLM has Recall@10 .316 and NDCG@10 .182 of 2,000 users (--config.evaluation.max_users=2000, seed 1), where
its encoder has .325 and .188.
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
    config.llm.num_layers = 3
    often = dict(eval_every=200, checkpoint_every=200)
    config.training.llm = schema.training(steps=1000, batch_size=128, learning_rate=2e-3, keep_best="loss", **often)
    config.training.encoder = schema.training(
        steps=2000, batch_size=64, learning_rate=3e-3, weight_decay=1e-2, keep_best="recall@10", **often
    )
    config.training.user_llm = schema.training(steps=3000, batch_size=128, keep_best="loss", **often)
    if task == "next_item":
        # The LLM learns to spell the movies first, then reads the encoder's last state as it is, for eight movies a
        # window, two of them whole. What it learns is what the encoder says of all of them. Small batches: targets that
        # are opinions, not labels, are little noise, and steps count. So small an LLM does better to choose among
        # titles than to spell them.
        config.integration.newest = 1
        config.integration.spelling_steps = 2500
        config.integration.within_catalogue = True
        config.integration.targets = 8
        config.integration.whole_every = 4
        config.integration.label_contexts = 0.1
        config.integration.distillation = 1.0
        config.integration.encoder_dropout = False
        config.integration.rates.encoder = 0.0
        often = dict(eval_every=2500, checkpoint_every=2500)
        config.training.user_llm = schema.training(
            steps=10000, batch_size=16, learning_rate=2e-3, warmup_fraction=0.03, keep_best="loss", **often
        )
    config.evaluation.batch_size = 128
    config.evaluation.exclude = "timeline"
    config.evaluation.num_beams = 50  # ten leave too few first words
    return config

"""Amazon Beauty of 2014, 5-core: 22,363 users, of whom half have at most six events, 12,101 items.

Three columns in the published order (user, item, timestamp), and the items' titles and categories:

    user-llm build custom/beauty --files interactions.csv --columns user=user item=item timestamp=timestamp \
        --items items.csv --item_columns item=item title=title category=category
    python -m user_llm.main --config=configs/amazon_beauty.py --workdir=runs/beauty "--config.stages=('encoder',)"

The encoder is SASRec with a softmax over the whole catalogue. About eight minutes on two cores of an AMD EPYC;
Recall@10 .100 and NDCG@10 .059 of all users (mean of three seeds), what is seen left out, where SASRec is published
with .0986 and .0597: docs/results/log.md.

With "--config.stages=('encoder','user_llm')", which leaves the LLM's own stage (an hour) out, User-LLM is trained in an
hour of one core: Recall@10 .0915 and NDCG@10 .0533 of all users (--config.evaluation.max_users=0), where its encoder
has .1004 and .0599.
"""

from user_llm import schema
from user_llm.command_line import load


def get_config(task="next_item"):
    config = schema.get_config()
    config.name = "amazon_beauty"
    config.task = task
    config.data.dataset = "custom/beauty"
    config.data.history_length = 50
    config.data.min_history = 1
    config.prompt.max_targets = 32
    config.encoder.features = ("item",)
    config.encoder.num_layers = 2
    config.encoder.width = 128
    config.encoder.num_heads = 2
    config.encoder.hidden = 512
    config.encoder.dropout = 0.6
    config.encoder.stride = 50
    config.llm.num_layers = 3
    often = dict(eval_every=200, checkpoint_every=200)
    config.training.llm = schema.training(steps=1000, batch_size=128, learning_rate=2e-3, keep_best="loss", **often)
    config.training.encoder = schema.training(
        steps=2500, batch_size=256, learning_rate=1e-2, weight_decay=1e-2, keep_best="recall@10", **often
    )
    config.training.user_llm = schema.training(steps=3000, batch_size=128, keep_best="loss", **often)
    if task == "next_item":
        # As in `ml_1m`, with four products of a window, as most users have few.
        learnt = load("ml_1m")
        config.integration, config.training.user_llm = learnt.integration, learnt.training.user_llm
        config.integration.targets = 4
        config.integration.spelling_steps = 6000
        config.training.user_llm.update(steps=15000, batch_size=32, eval_every=3000, checkpoint_every=3000)
        # The loss on labels rises as the LLM comes to say what the encoder says; its ranking goes on getting better.
        config.training.user_llm.keep_best = ""
    config.evaluation.batch_size = 256
    config.evaluation.exclude = "timeline"
    config.evaluation.num_beams = 20
    return config

"""Amazon gift cards of 2018, 5-core (458 users, 2,965 reviews): real reviews to generate on a laptop's two cores.

    python -m user_llm.main --config=configs/amazon_gift_cards.py --workdir=runs/gift_cards \
        [--config.data.raw_path=FOLDER_WITH_THE_TWO_FILES]

Histories of up to 5 events, as there are no longer ones; the review is its summary. Other tasks after a colon. The file
of All Beauty, and one without metadata, which has no categories:

    --config.data.dataset=amazon_reviews/all_beauty_2018 "--config.encoder.features=('item','rating')"

A few minutes. Data this small show that the road works on real files, not how good a model is: see docs/results.md.
"""

from user_llm import schema


def get_config(task="review_generation"):
    config = schema.get_config()
    config.name = "amazon_gift_cards"
    config.task = task
    config.data.dataset = "amazon_reviews/gift_cards_2018"
    config.data.history_length = 5
    config.data.min_history = 1
    config.prompt.max_inputs = 96  # title, category and rating
    config.prompt.max_targets = 40
    config.encoder.num_layers = 2
    config.encoder.width = 64
    config.encoder.num_heads = 2
    config.encoder.hidden = 128
    config.encoder.dropout = 0.2
    config.llm.num_layers = 2
    config.llm.width = 128
    config.llm.hidden = 256
    config.integration.hidden = 128
    often = dict(eval_every=50, checkpoint_every=50)
    config.training.llm = schema.training(steps=300, batch_size=64, learning_rate=2e-3, keep_best="loss", **often)
    config.training.encoder = schema.training(steps=300, batch_size=64, weight_decay=1e-1, keep_best="loss", **often)
    config.training.user_llm = schema.training(steps=300, batch_size=64, keep_best="loss", **often)
    return config

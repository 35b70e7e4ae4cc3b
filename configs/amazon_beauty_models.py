"""Every model of the paper on Amazon Beauty, whose dataset `amazon_beauty` says how to build:

    user-llm sweep --tables=2,5,8,7 --scale=workstation --datasets=amazon_reviews --jobs=2 --out=runs/workstation

Encoder and language model are those of `amazon_beauty`. As in `ml_1m_models`, encoders have two fifths of its steps and
the LLM rows, which move the encoder too, a quarter. The language model reads every product three times, not ten, as
its texts are long.
"""

from user_llm import schema
from user_llm.command_line import load


def get_config(task="next_item"):
    config = load(f"amazon_beauty:{task}").unlock()
    config.name = "amazon_beauty_models"
    config.training.encoder.steps = 1000
    config.training.llm.update(steps=300, eval_every=100, checkpoint_every=100)
    learnt = load(f"ml_1m_models:{task}")
    if task == "next_item":
        schema.shorten(config, 1, of=4)
        config.integration.rates.encoder = learnt.integration.rates.encoder
    else:
        config.training.user_llm = learnt.training.user_llm
    config.evaluation.update({key: learnt.evaluation[key] for key in ("max_users", "max_validation", "max_fit")})
    return config

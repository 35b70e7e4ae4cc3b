"""Every model of the paper on MovieLens-1M at the paper's 50 events:

    user-llm sweep --tables=2,5,8,7,fig3 --scale=workstation --datasets=movielens --jobs=2 \
        --out=runs/workstation [--raw movielens=ml-1m.zip]

Encoder and language model are those of `ml_1m`, which has 200 events: an encoder's step learns as many events here. So
that some eighty runs end in some hours on two cores, encoders have two fifths of its steps, the language model half of
them and the LLM rows a quarter, with thirty beams in place of fifty; LLM rows move the encoder too.
docs/reproduce.md says which models cannot follow how that config learns, and what each of them gets instead.
"""

from user_llm import schema
from user_llm.command_line import load

EVENTS = 50


def get_config(task="next_item"):
    config = load(f"ml_1m:{task}").unlock()
    config.name = "ml_1m_models"
    config.training.encoder.batch_size *= config.data.history_length // EVENTS
    config.data.history_length = EVENTS
    config.encoder.stride = EVENTS
    config.training.encoder.steps = 800
    config.training.llm.steps = 500
    config.evaluation.num_beams = 30
    if task == "next_item":
        schema.shorten(config, 1, of=4)
        config.integration.rates.encoder = 0.3  # strategies, and a random encoder, are compared: it has to move
    else:
        config.training.user_llm.update(steps=400, eval_every=100, checkpoint_every=100)
    config.evaluation.max_users = 1000  # the time of an LLM's row goes into its beams
    config.evaluation.max_validation = 1000
    config.evaluation.max_fit = 500
    return config

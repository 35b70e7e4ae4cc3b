"""Every model of the paper on MovieLens-1M at the paper's 50 events, within ten hours on two cores (with the rest):

    user-llm sweep --tables=2,5,8,7,fig3 --scale=workstation --datasets=movielens --jobs=2 \
        --out=runs/workstation [--raw movielens=ml-1m.zip]

Encoder and LLM are those of `ml_1m`, which has 200 events: an encoder's step learns as many events here.
docs/reproduce.md says which models cannot follow how that config learns, and what each of them gets instead.
"""

from user_llm.command_line import load

EVENTS = 50


def get_config(task="next_item"):
    config = load(f"ml_1m:{task}").unlock()
    config.name = "ml_1m_models"
    config.training.encoder.batch_size *= config.data.history_length // EVENTS
    config.data.history_length = EVENTS
    config.encoder.stride = EVENTS
    config.evaluation.max_users = 2000
    return config

"""Every model of the paper on Amazon Beauty, within ten hours on two cores (with the rest):

    user-llm sweep --tables=2,5,8,7 --scale=workstation --datasets=amazon_reviews --jobs=2 --out=runs/workstation

`amazon_beauty` says how its dataset is built. Its encoder and LLM are the same here; for the next item the LLM learns
to spell, and to read the encoder's last state, as in `ml_1m`.
"""

from user_llm.command_line import load


def get_config(task="next_item"):
    config = load(f"amazon_beauty:{task}").unlock()
    config.name = "amazon_beauty_models"
    if task == "next_item":
        learnt = load(f"ml_1m:{task}")
        config.integration = learnt.integration
        config.training.user_llm = learnt.training.user_llm
        config.evaluation.num_beams = learnt.evaluation.num_beams
    config.evaluation.max_users = 2000
    return config

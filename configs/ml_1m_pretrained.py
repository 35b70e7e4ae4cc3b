"""User-LLM and text prompts with a pretrained language model on MovieLens-1M:

    user-llm sweep --tables=pretrained --scale=pretrained --out=runs/pretrained --raw movielens=ml-1m.zip \
        --set llm.checkpoint=gemma-3-270m-q4_k_m.gguf llm.trim_vocabulary=true \
        integration.first_layer=12 integration.every=2

Data and encoder are those of `ml_1m_models`; the language model sees a quarter of its steps, of a quarter of its texts,
and fewer users are asked. Not run by us to the end yet.
"""

from user_llm.command_line import load

STEPS = ("steps", "eval_every", "checkpoint_every")


def get_config(task="next_item"):
    config = load(f"ml_1m_models:{task}").unlock()
    config.name = "ml_1m_pretrained"
    training = config.training.user_llm
    for budget, key in ((config.integration, "spelling_steps"), *((training, key) for key in STEPS)):
        budget[key] //= 4
    training.batch_size //= 4
    config.evaluation.max_users = 500
    config.evaluation.max_validation = 200
    config.evaluation.num_beams = 20
    return config

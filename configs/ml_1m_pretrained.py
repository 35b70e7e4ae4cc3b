"""User-LLM and text prompts with a pretrained language model on MovieLens-1M:

    user-llm sweep --tables=pretrained --scale=pretrained --out=runs/pretrained --raw movielens=ml-1m.zip \
        --set llm.checkpoint=gemma-3-270m-q4_k_m.gguf llm.trim_vocabulary=true \
        integration.first_layer=12 integration.every=2

Data and encoder are those of `ml_1m_models`; the language model sees two fifths of its steps, of a quarter of its
texts, and fewer users are asked. On two cores of an AMD EPYC, 500 users, Recall@10 (docs/results.md): encoder .314,
User-LLM with LoRA .058 and frozen .054 after half an hour each, the text prompt without training .016; the text prompt
with LoRA was not run.
"""

from user_llm import schema
from user_llm.command_line import load


def get_config(task="next_item"):
    config = load(f"ml_1m_models:{task}").unlock()
    config.name = "ml_1m_pretrained"
    schema.shorten(config, 2, of=5)
    config.training.user_llm.batch_size //= 4
    config.evaluation.max_users = 500
    config.evaluation.max_validation = 200
    config.evaluation.num_beams = 20
    return config

"""Every model of the paper on MovieLens latest-small, small enough that a sweep of them ends on a laptop's two cores:

    user-llm sweep --tables=2,5,6,7,8,fig3 --scale=laptop --datasets=movielens --jobs=2 --out=runs/laptop

Encoders are those of `ml_latest_small`, the language model has half its layers. All LLM runs of a seed share one
language model and see the same number of examples, a twelfth of what the single run of that config sees, so that 38
runs take about an hour: a comparison of models under a small budget, not the best of each. docs/results.md has them.
"""

from user_llm.command_line import load


def get_config(task="next_item"):
    config = load(f"ml_latest_small:{task}").unlock()
    config.name = "ml_latest_small_models"
    config.prompt.max_targets = 20
    config.llm.num_layers = 2
    config.llm.max_length = 1024  # so that 50 events fit as text, or as a soft prompt
    config.training.llm.update(steps=800, eval_every=400, checkpoint_every=400)
    config.training.encoder.update(steps=600)
    config.training.user_llm.update(steps=400, batch_size=32, eval_every=200, checkpoint_every=200)
    return config

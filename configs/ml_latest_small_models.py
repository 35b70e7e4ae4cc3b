"""Every model of the paper on MovieLens latest-small, small enough that a sweep of them ends on a laptop's two cores:

    python -m launch.local --sweep=models --config=configs/ml_latest_small_models.py --seeds=0,1 --out=runs/models

The models are those of `ml_latest_small.py`. All LLM runs share one language model a seed and see the same number of
examples, a sixth of what the single run of that config sees; the results are in the README.
"""

from configs import base, ml_latest_small


def get_config():
    config = ml_latest_small.get_config()
    config.name = "ml_latest_small_models"
    config.llm.max_length = 1024  # so that 50 events fit as text, or as a soft prompt
    config.training.user_llm = base.training(
        steps=800,
        batch_size=32,
        learning_rate=2e-3,
        weight_decay=1e-2,
        eval_every=400,
        checkpoint_every=400,
        keep_best="loss",
    )
    return config

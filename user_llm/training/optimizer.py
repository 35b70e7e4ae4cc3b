"""AdamW with linear warm-up, cosine decay and clipping (paper appendix C)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
    """Linear warm-up over `warmup_fraction` of the steps, then cosine decay to 0 at the last one."""
    warmup = round(config.warmup_fraction * config.steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(config.steps, warmup + 1),
    )


def decayed(axes: Mapping[str, Sequence[str | None]]) -> dict[str, bool]:
    """Path → does weight decay apply: to matrices only, so never to norms, biases and gates.

    The axis a scan stacks layers along does not count: a stack of norm scales is still no matrix. Nor is a bias of
    attention, though it has an axis of heads.
    """

    def is_matrix(path: str, names: Sequence[str | None]) -> bool:
        return len([name for name in names if name != "layers"]) >= 2 and "_bias_" not in path.rpartition("/")[2]

    return {path: is_matrix(path, names) for path, names in axes.items()}


class Pace(NamedTuple):
    """How a component of a model moves: by a share of the learning rate, and from a share of the steps on."""

    rate: float = 1.0
    after: float = 0.0


def make_optimizer(
    config: ConfigDict, axes: Mapping[str, Sequence[str | None]], paces: Mapping[str, Pace] | None = None
) -> optax.GradientTransformation:
    """The optimizer of a stage, for parameters with the given logical axes.

    Args:
      paces: of parameters whose path begins so; all others move as the config says.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adamw = optax.adamw(learning_rate_schedule(config), b2=0.98, weight_decay=config.weight_decay, mask=decayed(axes))
    if not paces:
        return optax.chain(clip, adamw)
    components = {path: next((start for start in paces if path.startswith(start)), "") for path in axes}
    moves = {start: optax.scale_by_schedule(_share_of_rate(pace, config.steps)) for start, pace in paces.items()}
    return optax.chain(clip, adamw, optax.multi_transform({"": optax.identity(), **moves}, components))


def _share_of_rate(pace: Pace, steps: int) -> optax.Schedule:
    return lambda count: jnp.where(count >= round(pace.after * steps), pace.rate, 0.0)

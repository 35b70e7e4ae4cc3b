"""AdamW with linear warm-up, cosine decay and clipping (paper appendix C); tables may be moved row by row."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

_B2 = 0.98  # what a step leaves of the second moments


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


def is_table(axes: Sequence[str | None]) -> bool:
    """Whether a parameter with these logical axes is a table [V, U], a row an item or a piece of text."""
    return len(axes) == 2 and axes[0] in ("items", "vocab")


class RowMoments(NamedTuple):
    """Steps so far, and path → float32 [V]: of each row the mean of its squared gradients."""

    steps: jax.Array
    squares: dict[str, jax.Array]


def scale_by_row_moments(b2: float = _B2, eps: float = 1e-8) -> optax.GradientTransformation:
    """Divides the gradient of each row of tables [V, U] by its root mean square over the row and the steps.

    Of Adam that is the second moment, one float a row in place of one a number, without the first: as much as momentum
    spreads over ten steps is moved in one (DLRM's row-wise AdaGrad, Naumov et al. 2019, with Adam's decay). What Adam
    holds twice the table for takes V floats, which lie on the devices as the rows do.
    """

    def init(tables) -> RowMoments:
        # Of a column, so that it is cut over devices as the rows are.
        return RowMoments(
            jnp.zeros((), jnp.int32), jax.tree.map(lambda x: jnp.zeros_like(x[:, 0], jnp.float32), tables)
        )

    def update(gradients, state: RowMoments, tables=None):
        del tables
        count = optax.safe_increment(state.steps)

        def moment(gradient, nu):
            return b2 * nu + (1 - b2) * jnp.mean(jnp.square(gradient.astype(jnp.float32)), axis=1)

        def scaled(gradient, nu):
            return (gradient / (jnp.sqrt(nu / (1 - b2**count)) + eps)[:, None]).astype(gradient.dtype)

        nu = jax.tree.map(moment, gradients, state.squares)
        return jax.tree.map(scaled, gradients, nu), RowMoments(count, nu)

    return optax.GradientTransformation(init, update)


class Pace(NamedTuple):
    """How a component of a model moves: by a share of the learning rate, and from a share of the steps on."""

    rate: float = 1.0
    after: float = 0.0


def make_optimizer(
    config: ConfigDict, axes: Mapping[str, Sequence[str | None]], paces: Mapping[str, Pace] | None = None
) -> optax.GradientTransformation:
    """The optimizer of a stage, for parameters with the given logical axes; `config.tables` says how tables move.

    Args:
      paces: of parameters whose path begins so; all others move as the config says.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    moments = optax.scale_by_adam(b2=_B2)
    if config.tables == "rowwise":
        kinds = {path: "table" if is_table(names) else "" for path, names in axes.items()}
        moments = optax.multi_transform({"": moments, "table": scale_by_row_moments()}, kinds)
    decay = optax.add_decayed_weights(config.weight_decay, decayed(axes))
    adamw = optax.chain(moments, decay, optax.scale_by_learning_rate(learning_rate_schedule(config)))
    if not paces:
        return optax.chain(clip, adamw)
    components = {path: next((start for start in paces if path.startswith(start)), "") for path in axes}
    moves = {start: optax.scale_by_schedule(_share_of_rate(pace, config.steps)) for start, pace in paces.items()}
    return optax.chain(clip, adamw, optax.multi_transform({"": optax.identity(), **moves}, components))


def _share_of_rate(pace: Pace, steps: int) -> optax.Schedule:
    return lambda count: jnp.where(count >= round(pace.after * steps), pace.rate, 0.0)

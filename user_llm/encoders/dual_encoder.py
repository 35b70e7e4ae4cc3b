"""The dual encoder (paper appendix A): of the next item, of its category, or of the user's favourite category."""

import dataclasses

from user_llm.config import task_names
from user_llm.data.favorites import FavoriteCategorySource
from user_llm.encoders.base import EncoderKind
from user_llm.models.dual_encoder import DualEncoder, DualEncoderConfig
from user_llm.training.objectives import dual_encoder_objective

FAVORITE = "favorite_category"  # the value of `label` that is given by the history, not by the next event


class TwoTowers(EncoderKind):
    """A user tower, a label tower, and their similarity."""

    name = "dual_encoder"

    def build(self, config, dims, sizes, rngs):
        """See `EncoderKind`."""
        dual = config.dual_encoder
        own = dict(num_outputs=dual.num_outputs, fusion_layers=dual.fusion_layers, label=self.ranks(config))
        return DualEncoder(DualEncoderConfig(**dataclasses.asdict(dims), **own), **sizes._asdict(), rngs=rngs)

    def objective(self, config, label_counts, dropped=None):
        """See `EncoderKind`. Its negatives are labels of the batch: what is dropped is none."""
        counts = label_counts() if config.dual_encoder.sampling_correction and self.ranks(config) == "item" else None
        return dual_encoder_objective(config.chunk_rows, counts)

    def source(self, config, windows, item_categories):
        """See `EncoderKind`."""
        return FavoriteCategorySource(windows, item_categories) if config.dual_encoder.label == FAVORITE else windows

    def ranks(self, config):
        """See `EncoderKind`."""
        return "item" if config.dual_encoder.label == "item" else "category"

    def context_length(self, config, history_length):
        """See `EncoderKind`."""
        return config.dual_encoder.num_outputs

    def problems(self, config):
        """See `EncoderKind`."""
        if config.integration.newest:
            yield "config.integration.newest is for encoders with an embedding an event: leave it out"
        yield from super().problems(config)
        label, keep_best = config.encoder.dual_encoder.label, config.training.encoder.keep_best
        says = f"config.encoder.dual_encoder.label={label!r}"
        if self.ranks(config.encoder) != "item" and "encoder" in config.stages and keep_best not in ("", "loss"):
            yield (
                f"{says} ranks no items, so that config.training.encoder.keep_best={keep_best!r} cannot be had: "
                "set --config.training.encoder.keep_best=loss"
            )
        if label == FAVORITE and FAVORITE not in task_names(config):
            yield f"{says} is the baseline of --config.task={FAVORITE}; this run has config.task={config.task!r}"

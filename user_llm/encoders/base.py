"""What an encoder kind is: how it is built, what it learns, and what it is to the language model."""

import abc
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from user_llm.data.pipeline import TrainSource
from user_llm.data.windows import Windows
from user_llm.models.user_encoder import EncoderConfig
from user_llm.training.negatives import Negatives
from user_llm.training.objectives import Draw, Objective


class Sizes(NamedTuple):
    """What a dataset decides of an encoder: int32 `[I+1, C]`, category ids of each item; classes without padding."""

    item_categories: np.ndarray
    num_categories: int
    num_ratings: int


class EncoderKind(abc.ABC):
    """A user encoder by the name that `config.encoder.kind` has for it.

    `config` is the section `config.encoder` throughout.

    Attributes:
      packs: whether its objective reads histories that share rows (`data/packing.py`).
      causal: whether an embedding has read the events up to its own alone, and is asked for the one behind it.
      reads_times, reads_item_text: whether it knows `config.time`, `config.item_text`.
      samples: whether its objective knows `config.softmax="sampled"`.
    """

    name: str
    packs: bool = False
    causal: bool = False
    reads_times: bool = False
    reads_item_text: bool = False
    samples: bool = False

    @abc.abstractmethod
    def build(self, config: ConfigDict, dims: EncoderConfig, sizes: Sizes, rngs: nnx.Rngs) -> nnx.Module:
        """The module, with the interface that `models/user_encoder.py` describes."""

    @abc.abstractmethod
    def objective(
        self, config: ConfigDict, label_counts: Callable[[], np.ndarray], dropped: np.ndarray | None = None
    ) -> Objective:
        """What its pretraining minimises.

        Args:
          label_counts: gives int64 `[I+1]`, how often each item is the label of a training window.
          dropped: bool `[I+1]`, items that no history has, which are not to be trained down as wrong answers either;
            None, always but with `evaluation.cold_share`: none.
        """

    def draw(
        self, config: ConfigDict, label_counts: Callable[[], np.ndarray], dropped: np.ndarray | None
    ) -> Draw | None:
        """What draws the negatives of a sampled softmax, where `config.softmax` is one; arguments as of `objective`."""
        if config.softmax == "full":
            return None
        draw = functools.partial(Negatives.draw, count=config.negatives)
        return jax.tree_util.Partial(draw, Negatives.by_popularity(label_counts(), dropped))

    def source(self, config: ConfigDict, windows: Windows, item_categories: np.ndarray) -> TrainSource:
        """What it learns from: the windows, with more where its objective reads more."""
        del config, item_categories
        return windows

    def ranks(self, config: ConfigDict) -> str:
        """What it scores as a baseline of its own: "item" or "category"."""
        del config
        return "item"

    def context_length(self, config: ConfigDict, history_length: int) -> int:
        """How many user embeddings it makes of a history."""
        del config
        return history_length

    def problems(self, config: ConfigDict) -> Iterator[str]:
        """A line for each value of the whole experiment's `config` that does not go with this kind."""
        if config.encoder.time and not self.reads_times:
            yield (
                f"config.encoder.kind={self.name!r} does not read config.encoder.time={config.encoder.time!r}: "
                "set --config.encoder.time="
            )
        if config.encoder.item_text and not self.reads_item_text:
            yield (
                f"config.encoder.kind={self.name!r} does not read config.encoder.item_text: "
                "set --config.encoder.item_text=false"
            )
        if config.encoder.softmax == "sampled" and not self.samples:
            yield (
                f"config.encoder.kind={self.name!r} has no config.encoder.softmax='sampled': "
                "set --config.encoder.softmax=full"
            )

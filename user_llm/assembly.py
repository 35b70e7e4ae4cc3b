"""From a config and a dataset's sizes to models: the one place that turns config keys into constructors."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from user_llm.checkpoints import huggingface
from user_llm.models.autoregressive_encoder import AutoregressiveEncoder, EncoderConfig
from user_llm.models.cross_attention import Connector, ConnectorConfig
from user_llm.models.language_model import LanguageModel, LanguageModelConfig
from user_llm.models.user_llm import UserLLM


@dataclasses.dataclass(frozen=True)
class Assembly:
    """Builds the models of an experiment. Every method is traceable, so nothing is held until it is needed.

    Attributes:
      config: the whole experiment.
      item_categories: int32 `[I+1, C]`, category ids of each item, 0-padded.
      num_categories, num_ratings: classes, without the padding class 0.
      vocabulary_size: rows of the LLM's table where no checkpoint names them.
    """

    config: ConfigDict
    item_categories: np.ndarray
    num_categories: int
    num_ratings: int
    vocabulary_size: int

    @property
    def _compute(self) -> dict[str, Any]:
        compute = self.config.compute
        return {key: compute[key] for key in ("dtype", "param_dtype", "scan_layers", "remat")}

    def encoder(self, rngs: nnx.Rngs) -> AutoregressiveEncoder:
        """The user encoder."""
        config = self.config.encoder
        return AutoregressiveEncoder(
            EncoderConfig(
                features=tuple(config.features),
                num_layers=config.num_layers,
                width=config.width,
                num_heads=config.num_heads,
                hidden=config.hidden,
                dropout=config.dropout,
                max_length=self.config.data.history_length,
                **self._compute,
            ),
            item_categories=self.item_categories,
            num_categories=self.num_categories,
            num_ratings=self.num_ratings,
            rngs=rngs,
        )

    @property
    def language_model_config(self) -> LanguageModelConfig:
        """The LLM's dims: the checkpoint's where one is named, else the config's."""
        config = self.config.llm
        if config.checkpoint:
            return dataclasses.replace(huggingface.load_config(Path(config.checkpoint)), **self._compute)
        return LanguageModelConfig(
            vocab_size=self.vocabulary_size,
            num_layers=config.num_layers,
            width=config.width,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            hidden=config.hidden,
            max_length=config.max_length,
            rope_theta=config.rope_theta,
            tie_embeddings=config.tie_embeddings,
            **self._compute,
        )

    def language_model(self, rngs: nnx.Rngs) -> LanguageModel:
        """The LLM alone."""
        return LanguageModel(self.language_model_config, rngs=rngs)

    def connector(self, rngs: nnx.Rngs) -> Connector:
        """What trains between encoder and LLM."""
        config, llm = self.config.integration, self.language_model_config
        dims = ConnectorConfig(
            every=config.every, num_heads=config.num_heads, head_dim=config.head_dim, hidden=config.hidden
        )
        return Connector(dims, llm.stack, self.config.encoder.width, rngs=rngs)

    def user_llm(self, rngs: nnx.Rngs) -> UserLLM:
        """The contextualised LLM."""
        return UserLLM(self.encoder(rngs), self.connector(rngs), self.language_model(rngs))

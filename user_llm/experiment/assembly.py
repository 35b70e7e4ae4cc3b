"""From a config and a dataset's sizes to models: the one place that turns config keys into constructors."""

import dataclasses
import functools
from typing import Any, cast

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from user_llm.checkpoints import huggingface
from user_llm.encoders import ENCODERS, Sizes
from user_llm.models.cross_attention import CrossAttention, CrossAttentionConfig
from user_llm.models.language_model import LanguageModel, LanguageModelConfig
from user_llm.models.lora import LoraConfig
from user_llm.models.perceiver import Perceiver, PerceiverConfig
from user_llm.models.soft_prompt import SoftPrompt, SoftPromptConfig
from user_llm.models.user_encoder import EncoderConfig, UserEncoder
from user_llm.models.user_llm import Connector, UserLLM


@dataclasses.dataclass(frozen=True)
class Assembly:
    """Builds the models of an experiment. Every method is traceable, so nothing is held until it is needed.

    Attributes:
      config: the whole experiment.
      item_categories: int32 `[I+1, C]`, category ids of each item, 0-padded.
      num_categories, num_ratings: classes, without the padding class 0.
      vocabulary_size: rows of the LLM's table where no checkpoint names them, or they are trimmed.
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

    def encoder(self, rngs: nnx.Rngs) -> nnx.Module:
        """The user encoder."""
        config = self.config.encoder
        dims = EncoderConfig(
            features=tuple(config.features),
            num_layers=config.num_layers,
            width=config.width,
            num_heads=config.num_heads,
            hidden=config.hidden,
            dropout=config.dropout,
            time=config.time,
            item_text=config.item_text,
            max_length=self.config.data.history_length,
            **self._compute,
        )
        sizes = Sizes(self.item_categories, self.num_categories, self.num_ratings)
        return ENCODERS[config.kind].build(config, dims, sizes, rngs)

    @functools.cached_property
    def language_model_config(self) -> LanguageModelConfig:
        """The LLM's dims: those of the checkpoint or the architecture where one is named, else the config's."""
        config = self.config.llm
        if config.checkpoint or config.architecture:
            read = huggingface.load_config(config.checkpoint or config.architecture)
            rows = self.vocabulary_size if config.trim_vocabulary else read.vocab_size
            return dataclasses.replace(read, vocab_size=rows, **self._compute)
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
        """The LLM alone, as it is pretrained."""
        return LanguageModel(self.language_model_config, rngs=rngs)

    @property
    def adapted_config(self) -> LanguageModelConfig:
        """The LLM's dims in the contextualised LLM: with adapters, where the strategy trains such."""
        lora = self.config.lora
        adapters = None
        if self.config.strategy == "lora":
            adapters = LoraConfig(lora.rank, lora.alpha, tuple(lora.targets), lora.first_layer)
        return dataclasses.replace(self.language_model_config, lora=adapters)

    def user_llm(self, rngs: nnx.Rngs) -> UserLLM:
        """The contextualised LLM; with `integration.kind=none` an LLM that has its prompt only (TextPrompt)."""
        config, llm = self.config.integration, self.adapted_config
        if config.kind == "none":
            return UserLLM(None, None, None, LanguageModel(llm, rngs=rngs))
        encoder, width = cast(UserEncoder, self.encoder(rngs)), self.config.encoder.width
        perceiver = self._perceiver(rngs) if config.perceiver.enabled else None
        if config.kind == "soft_prompt":
            connector: Connector = SoftPrompt(SoftPromptConfig(config.task_prompt), llm, width, rngs=rngs)
        else:
            blocks = CrossAttentionConfig(
                config.every, config.num_heads, config.head_dim, config.hidden, config.first_layer
            )
            connector = CrossAttention(blocks, llm, width, rngs=rngs)
        return UserLLM(encoder, perceiver, connector, LanguageModel(llm, rngs=rngs), newest=config.newest)

    def _perceiver(self, rngs: nnx.Rngs) -> Perceiver:
        dims = self.config.integration.perceiver
        config = PerceiverConfig(
            num_layers=dims.num_layers,
            num_latents=dims.num_latents,
            num_heads=dims.num_heads,
            hidden=dims.hidden,
            **self._compute,
        )
        return Perceiver(config, self.config.encoder.width, rngs=rngs)

    @property
    def context_length(self) -> int:
        """How many vectors a user is to the LLM: its events' embeddings, a dual encoder's, or a Perceiver's latents."""
        config = self.config
        if config.integration.kind == "none":
            return 0
        if config.integration.perceiver.enabled:
            return config.integration.perceiver.num_latents
        encoder = config.encoder
        length = ENCODERS[encoder.kind].context_length(encoder, config.data.history_length)
        return min(length, config.integration.newest or length)

    @property
    def soft_prompt_length(self) -> int:
        """How many positions a soft prompt takes of the LLM's `max_length`."""
        integration = self.config.integration
        return self.context_length + integration.task_prompt if integration.kind == "soft_prompt" else 0

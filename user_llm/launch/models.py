"""The models that the columns of the paper's tables name, as data."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Model:
    """One model of the paper.

    Attributes:
        encoder: kind of the user encoder; None: TextPrompt, which has none.
        alone: the encoder as a baseline of its own, without a language model.
        integration: `cross_attention` or `soft_prompt`.
        strategy: what trains: `full`, `lora`, `enc` or `proj`.
        pretrained: whether the encoder is (the paper's PT, RD).
        perceiver: whether one stands between encoder and language model.
        text: events that are written into the prompt: "", "short" (the latest 10) or "all".
        length: the paper's length of history where a table varies it (50, 100, 200); 0: the setting's own.
        features: what the encoder reads, where not what the config says.
        trained: whether anything learns; a text prompt with a language model as it came is zero-shot.
        cold: whether a share of the items is kept from everything that learns, and asked about.
    """

    encoder: str | None = "autoregressive"
    alone: bool = False
    integration: str = "cross_attention"
    strategy: str = "full"
    pretrained: bool = True
    perceiver: bool = False
    text: str = ""
    length: int = 0
    features: tuple[str, ...] = ()
    trained: bool = True
    cold: bool = False

    @property
    def label(self) -> str:
        """Readable; with the length of history, another for every model."""
        if self.encoder is None:
            parts = ["text_prompt", self.text, *([] if self.trained else ["zero_shot"])]
        else:
            parts = [self.encoder, *(["alone"] if self.alone else [self.integration])]
            parts += ["random"] if not self.pretrained else []
            parts += ["perceiver"] if self.perceiver else []
            parts += [f"text_{self.text}"] if self.text else []
            parts += self.features
            parts += ["cold"] if self.cold else []
        parts += [self.strategy] if not self.alone else []
        return ".".join(parts)


USER_LLM = Model()
PERCEIVER = Model(perceiver=True)
SOFT_PROMPT = Model(integration="soft_prompt")
RANDOM_ENCODER = Model(pretrained=False)
TEXT_PROMPT = Model(encoder=None, text="all")
ZERO_SHOT = Model(encoder=None, text="all", strategy="lora", trained=False)
SHORT_TEXT_PROMPT = Model(encoder=None, text="short")
WITH_SHORT_TEXT = Model(text="short")
COLD = Model(cold=True)
DUAL_ENCODER_LLM = Model(encoder="dual_encoder")
DUAL_ENCODER_LLM_WITH_SHORT_TEXT = Model(encoder="dual_encoder", text="short")

AUTOREGRESSIVE = Model(alone=True)
DUAL_ENCODER = Model(encoder="dual_encoder", alone=True)
BERT4REC = Model(encoder="bert4rec", alone=True)
SASREC = Model(alone=True, features=("item",))

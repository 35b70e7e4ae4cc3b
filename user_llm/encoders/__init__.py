"""The user encoders by name. A kind of your own: `ENCODERS.register(MyKind())`, in the file of your config, say."""

from user_llm.encoders.autoregressive import Autoregressive
from user_llm.encoders.base import EncoderKind, Sizes
from user_llm.encoders.bert4rec import MaskedEvents
from user_llm.encoders.dual_encoder import TwoTowers
from user_llm.encoders.hstu import GatedUnits
from user_llm.registry import Registry

ENCODERS: Registry[EncoderKind] = Registry()
for _kind in (Autoregressive(), TwoTowers(), MaskedEvents(), GatedUnits()):
    ENCODERS.register(_kind)

__all__ = ["ENCODERS", "EncoderKind", "Sizes"]

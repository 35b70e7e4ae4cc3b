"""User-LLM: a language model that reads a user's timeline as embeddings (arXiv 2402.13598).

`load_timelines`, `load_language_model`, `load`, `UserEmbeddings` and `UserStore` are the public face (docs/python.md).
"""

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "load_timelines": "user_llm.data.timelines",
    "load_language_model": "user_llm.api",
    "load": "user_llm.api",
    "UserEmbeddings": "user_llm.embeddings",
    "UserStore": "user_llm.store.user_store",
}

__version__ = "0.1.0"

__all__ = ["UserEmbeddings", "UserStore", "__version__", "load", "load_language_model", "load_timelines"]

if TYPE_CHECKING:
    from user_llm.api import load, load_language_model
    from user_llm.data.timelines import load_timelines
    from user_llm.embeddings import UserEmbeddings
    from user_llm.store.user_store import UserStore
else:

    def __getattr__(name: str) -> Any:
        # On first use: importing the package alone must not import TensorFlow.
        if name in _PUBLIC:
            return getattr(importlib.import_module(_PUBLIC[name]), name)
        raise AttributeError(f"module 'user_llm' has no attribute {name!r}")

"""The schema of an experiment, which every other config edits: `user_llm/schema.py` explains its keys."""

from user_llm.schema import get_config, training

__all__ = ["get_config", "training"]

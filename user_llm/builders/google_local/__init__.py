"""Google Local reviews as a TFDS dataset of one timeline per user."""

from user_llm.builders.google_local.google_local_dataset_builder import Builder

__all__ = ["Builder"]

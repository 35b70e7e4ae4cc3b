"""Your own CSV, JSON-lines or Parquet files as a TFDS dataset of one timeline per user."""

from user_llm.builders.custom.config import CustomConfig
from user_llm.builders.custom.custom_dataset_builder import Builder

__all__ = ["Builder", "CustomConfig"]

"""Your own CSV, JSON-lines or Parquet files as a TFDS dataset of one timeline per user."""

from tfds_builders.custom.config import CustomConfig
from tfds_builders.custom.custom_dataset_builder import Builder

__all__ = ["Builder", "CustomConfig"]

"""MovieLens as a TFDS dataset of one timeline per user."""

from user_llm.builders.movielens.movielens_dataset_builder import Builder

__all__ = ["Builder"]

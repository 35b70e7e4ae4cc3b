"""MovieLens as a TFDS dataset of one timeline per user."""

from tfds_builders.movielens.movielens_dataset_builder import Builder

__all__ = ["Builder"]

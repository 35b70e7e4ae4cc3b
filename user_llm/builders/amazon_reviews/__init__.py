"""Amazon reviews as a TFDS dataset of one timeline per user."""

from user_llm.builders.amazon_reviews.amazon_reviews_dataset_builder import Builder

__all__ = ["Builder"]

"""TFDS builders that turn raw interaction files into one timeline per user (DESIGN 4)."""

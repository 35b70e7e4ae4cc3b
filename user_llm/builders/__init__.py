"""TFDS builders that turn raw interaction files into one timeline per user (docs/architecture.md)."""

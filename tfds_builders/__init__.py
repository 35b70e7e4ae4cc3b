"""What TFDS' command finds by folder, and `python -m tfds_builders.build`; the builders are `user_llm.builders`."""

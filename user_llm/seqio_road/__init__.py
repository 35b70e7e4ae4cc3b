"""The tasks in SeqIO: sources, preprocessors, features, metrics, and a reader that feeds the trainer from them."""

from user_llm.seqio_road import quiet_tensorflow  # noqa: F401 - before SeqIO brings TensorFlow

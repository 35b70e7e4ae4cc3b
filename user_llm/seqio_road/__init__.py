"""The tasks in SeqIO: sources, preprocessors, features, metrics, and a reader that feeds the trainer from them."""

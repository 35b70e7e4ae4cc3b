"""The same data through SeqIO and TensorFlow, for those who train with its tasks. Nothing else needs it."""

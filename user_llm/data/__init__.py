"""From timelines to batches: windows addressed by integer, texts tokenised once, SeqIO tasks over both."""

"""User-LLM: a language model that reads a user's timeline as embeddings (arXiv 2402.13598)."""

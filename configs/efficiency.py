"""Dimensions for measuring what User-LLM saves over a text prompt, of a small LLM that runs on a laptop CPU.

    python -m user_llm.efficiency --config=configs/efficiency.py --output=efficiency.json

The encoder is the paper's, over MovieLens-20M's catalogue; the LLM has 6 layers of width 384 and 32k pieces. No
data is read. 3.3 minutes on two idle cores with tuned malloc; benchmarks/README.md has the figures.
"""

from user_llm import schema


def get_config():
    config = schema.get_config()
    config.name = "efficiency"
    config.llm.vocabulary_size = 32_000
    config.llm.num_layers = 6
    config.llm.width = 384
    config.llm.num_heads = 6
    config.llm.num_kv_heads = 6
    config.llm.head_dim = 64
    config.llm.hidden = 1024
    config.llm.max_length = 4096
    return config

"""What every contender of the beam search does: the same language model, the same prompts, the same catalogue."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

EOS = 2


@dataclasses.dataclass(frozen=True)
class BeamWorkload:
    """Ten titles of MovieLens-20M's catalogue for each of 8 users, by a Llama of 6 layers with random weights."""

    users: int = 8
    num_beams: int = 10
    prompt_length: int = 32
    num_titles: int = 27_278
    longest_title: int = 15
    vocabulary: int = 32_000
    num_layers: int = 6
    width: int = 384
    num_heads: int = 6
    hidden: int = 1024

    def prompts(self) -> np.ndarray:
        """Token ids int64 [users, prompt_length], without padding."""
        return np.random.default_rng(0).integers(3, self.vocabulary, (self.users, self.prompt_length))

    def titles(self) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int32 [titles + 1, longest_title] and lengths; row 0 is no title. Many begin alike."""
        rng = np.random.default_rng(1)
        shape = (self.num_titles + 1, self.longest_title)
        tokens = 3 + rng.integers(0, self.vocabulary - 3, shape)
        tokens[:, :2] = 3 + rng.zipf(1.3, (len(tokens), 2)) % (self.vocabulary - 3)
        lengths = rng.integers(4, self.longest_title + 1, len(tokens))
        lengths[0] = 0
        return tokens.astype(np.int32), lengths

    def save(self, folder: Path) -> None:
        """Writes the language model as a Hugging Face folder."""
        rng = np.random.default_rng(2)
        config = {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_heads,
            "head_dim": self.width // self.num_heads,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": EOS,
            "pad_token_id": 0,
        }

        def weights(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)

        ones = np.ones(self.width, np.float32)
        tensors = {"model.embed_tokens.weight": weights(self.vocabulary, self.width), "model.norm.weight": ones}
        for layer in range(self.num_layers):
            at = f"model.layers.{layer}."
            tensors |= {f"{at}self_attn.{name}_proj.weight": weights(self.width, self.width) for name in "qkvo"}
            tensors |= {f"{at}mlp.{name}_proj.weight": weights(self.hidden, self.width) for name in ("gate", "up")}
            tensors[f"{at}mlp.down_proj.weight"] = weights(self.width, self.hidden)
            tensors |= {f"{at}{name}_layernorm.weight": ones for name in ("input", "post_attention")}
        (folder / "config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

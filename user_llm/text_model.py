"""A published language model by itself, from Python."""

import reprlib
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from user_llm.arguments import folder_path, whole
from user_llm.checkpoints import huggingface
from user_llm.data.vocabularies import Vocabulary, load_vocabulary, text_start
from user_llm.decoding.generate import generate
from user_llm.errors import UserError
from user_llm.models.language_model import LanguageModel, LanguageModelConfig, causal_mask


class TextModel:
    """A language model with its tokenizer.

    Attributes:
      model: the `LanguageModel`.
      config: its dims.
      tokenizer: a `Vocabulary`: `encode`, `decode`, `bos_id`, `eos_id`.

    Raises:
      UserError: the tokenizer has tokens for which the model has no rows.
    """

    def __init__(self, model: LanguageModel, tokenizer: Vocabulary):
        if tokenizer.rows > model.config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.rows} tokens, but the model has rows for "
                f"{model.config.vocab_size}: it belongs to another model."
            )
        self.model = model
        self.tokenizer = tokenizer

    @property
    def config(self) -> LanguageModelConfig:
        return self.model.config

    def logits(self, token_ids: np.ndarray) -> jax.Array:
        """Next-token logits float32 `[B, T, V]` at every position of `token_ids`, int `[B, T]`, causal, no padding.

        Raises:
          UserError: `token_ids` are no such array, outside of the vocabulary, or more than the model's `max_length`.
        """
        try:
            ids = np.asarray(token_ids)
        except ValueError:
            raise UserError("token_ids must be [batch, tokens], got texts of several lengths: ask for each.") from None
        if ids.ndim != 2 or not ids.size:
            raise UserError(f"token_ids must be [batch, tokens], got shape {ids.shape}: put one text in a list.")
        if ids.dtype.kind not in "iu":
            raise UserError(f"token_ids must be whole numbers, got an array of {ids.dtype}.")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise UserError(f"token ids run from 0 to {self.config.vocab_size - 1}, got {ids.min()} … {ids.max()}.")
        if ids.shape[1] > self.config.max_length:
            raise UserError(
                f"{ids.shape[1]} tokens are more than the {self.config.max_length} this model was made for: cut them."
            )
        logits: jax.Array = _logits(self.model, jnp.asarray(ids, jnp.int32))
        return logits

    def generate(self, prompt: str, max_new_tokens: int = 40, *, temperature: float = 0.0, seed: int = 0) -> str:
        """The text that continues `prompt`: greedy, or sampled with a temperature.

        BOS is put in front of the prompt where the checkpoint's texts begin with it. The same seed, from 0 to
        2**32 - 1, gives the same text.

        Raises:
          UserError: an argument is no such thing, or prompt and new tokens are more than the model's `max_length`.
        """
        seed = whole("seed", seed, 0, 2**32 - 1)
        start, words = prompt_tokens(self.tokenizer, prompt, max_new_tokens, self.config.max_length)
        new = generate(
            self.model,
            jnp.asarray([start + words], jnp.int32),
            jnp.asarray([len(start + words)], jnp.int32),
            max_new_tokens=int(max_new_tokens),
            eos_id=self.tokenizer.eos_id,
            temperature=temperature,
            key=jax.random.key(seed),
        )
        return continuation(self.tokenizer, words, np.asarray(new)[0])

    def save(self, folder: str | Path) -> None:
        """Writes a Hugging Face folder, which `load_language_model` and `transformers` load.

        Raises:
          UserError: `folder` is none.
          CheckpointError: it holds weights already.
        """
        folder = folder_path("folder", folder)
        huggingface.save_language_model(self.model, folder, bos_id=self.tokenizer.bos_id, eos_id=self.tokenizer.eos_id)
        self.tokenizer.save(folder)


def continuation(tokenizer: Vocabulary, words: Sequence[int], new: np.ndarray) -> str:
    """The text of `new` tokens int `[T]` behind those of `words`."""
    # Decoded together: a continuation alone would lose the space in front of it.
    together = np.array([[*words, *new.tolist()]], np.int32)
    return tokenizer.decode_batch(together)[0][len(tokenizer.decode_batch(together[:, : len(words)])[0]) :]


def prompt_tokens(tokenizer: Vocabulary, prompt: str, max_new_tokens: int, room: int) -> tuple[list[int], list[int]]:
    """The tokens that stand before a prompt's text, and those of the text.

    Raises:
      UserError: it is no text, or has no token; a model with `room` for so many tokens has none for the new ones.
    """
    _check_text(prompt)
    whole("max_new_tokens", max_new_tokens, 1)
    start, (words,) = text_start(tokenizer), tokenizer.encode_batch([prompt])
    length = len(start) + len(words)
    if not length:
        raise UserError("there is nothing to continue: this tokenizer puts no BOS in front of an empty prompt.")
    if length + max_new_tokens > room:
        raise UserError(
            f"{length} tokens of prompt and {max_new_tokens} new ones are more than the {room} this model has room "
            "for: shorten the prompt, or lower max_new_tokens."
        )
    return start, words


def _check_text(prompt: str) -> None:
    """Raises UserError where a prompt is no text."""
    if not isinstance(prompt, str):
        raise UserError(f"prompt must be a text, got {reprlib.repr(prompt)}.")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"prompt holds {prompt[error.start]!r} at {error.start}, half a character: decode the text with "
            "errors='replace'."
        ) from None


@jax.jit
def _logits(model: LanguageModel, tokens: jax.Array) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = model(tokens, positions, causal_mask(jnp.ones(tokens.shape, bool)))
    return model.logits(hidden)


def load_language_model(name: str | Path, *, dtype: str = "float32", param_dtype: str = "float32") -> TextModel:
    """Loads a Hugging Face folder, a GGUF file, or a model of the hub by its name ("organisation/model").

    The folder has `config.json`, safetensors (one file or shards), and `tokenizer.model` or `tokenizer.json`. A GGUF
    file has all of it.

    Raises:
      CheckpointError: what of it is missing, left over, misshaped or not supported.
      FileNotFoundError: it has no tokenizer.
    """
    folder = huggingface.resolve(name)
    tokenizer = load_vocabulary(folder)  # first, as it may be missing and takes no time
    return TextModel(huggingface.load_language_model(folder, dtype=dtype, param_dtype=param_dtype), tokenizer)

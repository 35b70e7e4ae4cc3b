"""SentencePiece models: one as a vocabulary, and one trained on texts."""

import io
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from user_llm.data.huggingface_vocabulary import TOKENIZER_CONFIG, TOKENIZER_JSON
from user_llm.data.vocabulary import Vocabulary
from user_llm.errors import UserError
from user_llm.files import replacing

TOKENIZER_FILE = "tokenizer.model"
MAX_SENTENCE_BYTES = 1 << 20


class SentencePieceVocabulary(Vocabulary):
    """The vocabulary in a SentencePiece model, whose own pieces say what begins and ends a text.

    Args:
        file: the model.
        model: its content, where `file` holds it in another form.

    Attributes:
        tokenizer: the `sentencepiece.SentencePieceProcessor`.

    Raises:
        UserError: the file is no SentencePiece model, or has no piece that ends a text.
    """

    def __init__(self, file: str | os.PathLike, model: bytes | None = None):
        model = Path(file).read_bytes() if model is None else model
        super().__init__(file, model)
        self.tokenizer = sentencepiece.SentencePieceProcessor()
        try:
            self.tokenizer.load_from_serialized_proto(model)
        except RuntimeError as error:
            raise UserError(f"{self.file} is not a SentencePiece model: {error}") from error
        self.bos_id, self.eos_id = self.tokenizer.bos_id(), self.tokenizer.eos_id()
        if self.eos_id < 0:
            raise UserError(f"{self.file} has no end-of-sentence piece, so no title could end: use another model.")
        self.unk_id = self.tokenizer.unk_id()
        self.vocab_size = self.rows = self.tokenizer.get_piece_size()
        self.adds_bos = self.bos_id >= 0

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of every text, without BOS and EOS."""
        return self.tokenizer.encode(list(texts), out_type=int)

    def decode_rows(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of every token list; BOS, EOS and the like have none."""
        return self.tokenizer.decode(rows) if rows else []  # it takes an empty list for one text, not for none

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `tokenizer.model` into `folder`, and the files that `transformers` has beside one of that name."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.copy_to(folder / TOKENIZER_FILE)
        for beside in map(self.file.with_name, (TOKENIZER_JSON, TOKENIZER_CONFIG)):
            if self.file.name == TOKENIZER_FILE and beside.is_file():
                shutil.copyfile(beside, folder / beside.name)


def train_sentencepiece(texts: Iterable[str], size: int, path: str | os.PathLike) -> None:
    """Trains a unigram SentencePiece model (Kudo 2018) and writes it to `path`, atomically.

    Text is taken as it is (no normalisation, bytes for rare characters), so decoding gives the text back and
    different texts have different tokens (one exception is SentencePiece's own: it cannot tell U+2581 from a
    space). One thread: the same texts give the same file. Ids: 0 padding, 1 BOS, 2 EOS, 3 unknown.

    Args:
        texts: the corpus.
        size: pieces wanted, at least 260 (256 bytes and 4 controls) plus the corpus' frequent characters. A
            corpus too small for that many gives fewer.
        path: the file to write.

    Raises:
        UserError: no text, a text above 1 MiB, or a size too small for the corpus.
    """
    texts = [text for text in texts if text]
    if not texts:
        raise UserError("cannot train a vocabulary: the corpus has no text.")
    longest = max(len(text.encode()) for text in texts)
    if longest > MAX_SENTENCE_BYTES:  # SentencePiece would leave it out without a word
        raise UserError(f"cannot train a vocabulary on a text of {longest} bytes: split texts above 1 MiB.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=size,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=MAX_SENTENCE_BYTES,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"SentencePiece could not train a vocabulary of {size} pieces: {error}") from error
    with replacing(path) as partial:
        partial.write_bytes(model.getvalue())

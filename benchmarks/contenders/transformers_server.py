"""Our server, with every batch of recommendations computed by `transformers` in place of our beams.

What is the same: HTTP, validation, queue, batches, the run's own language model (its layers, width, vocabulary and
trained weights), its prompt, its titles and the number of beams. With `--text` it reads a user as TextPrompt does: the
titles of all events before the question. Without, what differs is in the peer's favour: it reads no user at all.
Either way it has no cross-attention, and leaves out nothing that the user has met. Its batches are of as many as wait,
at most 8, as it is asked by 8 at most. Only of a run with a trimmed vocabulary it has more to do: it has the whole one.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from benchmarks.contenders.transformers_beams import following
from user_llm.api import UserModel, load
from user_llm.data.prompts import Prompts
from user_llm.serving.serve import logged, serve
from user_llm.serving.served import RECOMMEND, Found, Key, Payload, Served
from user_llm.serving.service import Service
from user_llm.serving.settings import Settings
from user_llm.tasks import Answer

_ROOM = 1 << 16  # tokens of a prompt: no event is dropped


class Peer(Served):
    """A run whose language model answers by `transformers`, of all items and nothing else.

    Args:
      text: whether it reads a user's events, as titles before the question.
    """

    def __init__(self, name: str, model: UserModel, settings: Settings, text: bool = False):
        super().__init__(name, model, None, settings)
        study = model.study
        if study.config.data.text_history or study.config.integration.kind == "none":
            raise SystemExit(f"{name} reads users as text, as this peer would: it would be no comparison.")
        logging.set_verbosity_error()
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "model"
            model.save_language_model(place)
            self._model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
        vocabulary, names = study.vocabulary, study.names.titles
        # What is saved has the whole table of a vocabulary that the run has trimmed.
        self._whole = np.arange(vocabulary.rows) if vocabulary.kept is None else vocabulary.kept
        self._prompts = study.prompts("next_item")
        if text:
            words = self._prompts
            events = study.config.data.history_length
            self._prompts = Prompts(study.names, words.wording, max_inputs=_ROOM, text_history=events)
        tokens, self._eos = self._whole[names.tokens], int(self._whole[vocabulary.eos_id])
        self._longest = names.targets.shape[1]
        self._following = following(tokens, names.lengths, self._eos)
        rows = zip(tokens[1:].tolist(), names.lengths[1:].tolist(), strict=True)
        # Of titles that share their tokens the first stands for all.
        self._titles: dict[tuple[int, ...], str] = {}
        for item, (title, length) in enumerate(rows, start=1):
            self._titles.setdefault(tuple(title[:length]), model.catalogue.titles[item])
        self._beams = max(settings.k, study.config.evaluation.num_beams)

    def seconds(self, key: Key, size: int) -> float:
        """See `Served`: as if all took the same, so that as many are taken as wait. It pads no batch."""
        del key, size
        return 1.0

    def likeliest(self, history: np.ndarray) -> list[list[Answer]]:
        """The likeliest titles for each user, best first.

        Args:
          history: int `[B, S]`, item ids, oldest first, left-padded with 0.
        """
        prompts, mask = self._asked(history)

        def allowed(_: int, tokens: torch.Tensor) -> list[int]:
            return self._following.get(tuple(tokens[prompts.shape[1] :].tolist()), [self._eos])

        with torch.inference_mode():
            found = self._model.generate(
                prompts,
                attention_mask=mask,
                num_beams=self._beams,
                num_return_sequences=self._beams,
                max_new_tokens=self._longest,
                do_sample=False,
                length_penalty=0.0,
                early_stopping=True,
                prefix_allowed_tokens_fn=allowed,
                return_dict_in_generate=True,
                output_scores=True,
                pad_token_id=self._eos,
                eos_token_id=self._eos,
            )
        texts = found.sequences[:, prompts.shape[1] :].tolist()
        answers = [
            Answer(self._titles[tuple(text[: text.index(self._eos)])], score)
            # Its beams may run out of titles, and some then stay empty.
            if score > -1e6 and self._eos in text
            else None
            for text, score in zip(texts, found.sequences_scores.tolist(), strict=True)
        ]
        rows = (answers[start : start + self._beams] for start in range(0, len(answers), self._beams))
        return [[answer for answer in row if answer is not None] for row in rows]

    def _asked(self, history: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts in the whole vocabulary, and which tokens are of them: both `[B, P]`, padded on the left."""
        tokens, lengths, _ = self._prompts.build(history)
        width = int(lengths.max())
        mask = np.arange(width) >= width - lengths[:, None]
        prompts = np.full(mask.shape, self._eos)
        prompts[mask] = self._whole[tokens[np.arange(tokens.shape[1]) < lengths[:, None]]]
        return torch.from_numpy(prompts), torch.from_numpy(mask.astype(np.int64))

    def _recommend(self, payloads: list[Payload], answers: str, allow: Any, category: str | None) -> list[Any]:
        del answers, allow, category
        version = self.model.items.version
        history = np.concatenate([np.asarray((payload.person.read or {})["history/item"]) for payload in payloads])
        return [Found(row[: self.settings.k], version) for row in self.likeliest(history)]

    def _kinds(self) -> list[tuple[Key, Any]]:
        return [(Key(self, RECOMMEND, ("beams", None, None)), ())]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--text", action="store_true", help="read users as text")
    options = parser.parse_args(arguments)
    logged()
    settings = Settings(answers=("beams",), batch=8, timeout=600.0)  # however long a batch takes
    name, model = options.workdir.name, load(options.workdir)
    service = Service(name, model, None, settings)
    service.served = Peer(name, model, settings, options.text)
    serve(service, "127.0.0.1", options.port, None)


if __name__ == "__main__":
    main()

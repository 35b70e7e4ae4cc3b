"""Our server, with every batch of recommendations computed by `transformers` in place of our beams.

What is the same: HTTP, validation, queue, batches, the run's own language model (its layers, width, vocabulary and
trained weights), its prompt, its titles and the number of beams. What differs is in the peer's favour: it reads no
user at all, neither by an encoder nor as text, has no cross-attention, and leaves out nothing that the user has met.
Its batches are of as many as wait, at most 8, as it is asked by 8 at most. Only of a run with a trimmed vocabulary it
has more to do: it has the whole one.
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
from user_llm.serving.serve import logged, serve
from user_llm.serving.served import RECOMMEND, Found, Key, Payload, Served
from user_llm.serving.service import Service
from user_llm.serving.settings import Settings
from user_llm.tasks import Answer


class Peer(Served):
    """A run whose language model answers by `transformers`, of all items and nothing else."""

    def __init__(self, name: str, model: UserModel, settings: Settings):
        super().__init__(name, model, None, settings)
        study = model.study
        if study.config.data.text_history or study.config.integration.kind == "none":
            raise SystemExit(f"{name} reads users as text: this peer reads none, so it would be no comparison.")
        logging.set_verbosity_error()
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "model"
            model.save_language_model(place)
            self._model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
        vocabulary, names = study.vocabulary, study.names.titles
        # What is saved has the whole table of a vocabulary that the run has trimmed.
        whole = np.arange(vocabulary.rows) if vocabulary.kept is None else vocabulary.kept
        prompt, lengths, _ = study.prompts("next_item").build(np.zeros((1, 1), np.int32))
        self._prompt = torch.from_numpy(whole[prompt[:, : lengths[0]]])
        tokens, self._eos = whole[names.tokens], int(whole[vocabulary.eos_id])
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

    def likeliest(self, users: int) -> list[list[Answer]]:
        """The likeliest titles for each of so many, best first."""
        prompts = self._prompt.expand(users, -1)

        def allowed(_: int, tokens: torch.Tensor) -> list[int]:
            return self._following.get(tuple(tokens[prompts.shape[1] :].tolist()), [self._eos])

        with torch.inference_mode():
            found = self._model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
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

    def _recommend(self, payloads: list[Payload], answers: str, allow: Any, category: str | None) -> list[Any]:
        del answers, allow, category
        version = self.model.items.version
        return [Found(row[: self.settings.k], version) for row in self.likeliest(len(payloads))]

    def _kinds(self) -> list[tuple[Key, Any]]:
        return [(Key(self, RECOMMEND, ("beams", None, None)), ())]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args(arguments)
    logged()
    settings = Settings(answers=("beams",), batch=8)
    name, model = options.workdir.name, load(options.workdir)
    service = Service(name, model, None, settings)
    service.served = Peer(name, model, settings)
    serve(service, "127.0.0.1", options.port, None)


if __name__ == "__main__":
    main()

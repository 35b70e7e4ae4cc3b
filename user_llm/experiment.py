"""The data and models of one experiment, each made once, on first use."""

import dataclasses
import functools
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import seqio
from jax.sharding import Mesh
from ml_collections import ConfigDict

from user_llm.assembly import Assembly
from user_llm.checkpoints import huggingface
from user_llm.config import ConfigError
from user_llm.data.answers import Answers, FavoriteCategoryAnswers, ReviewAnswers, TitleAnswers
from user_llm.data.favorites import FavoriteCategorySource
from user_llm.data.feature_converters import TextSource, UserLLMSource
from user_llm.data.prompts import (
    Names,
    Prompts,
    Wording,
    catalogue_documents,
    category_noun_of,
    favorite_category,
    next_item,
    noun_of,
    review_generation,
)
from user_llm.data.timelines import Catalogue, TimelineTable, load_timelines
from user_llm.data.vocabularies import (
    TOKENIZER_FILE,
    NameTokens,
    copy_vocabulary,
    decode_batch,
    load_vocabulary,
    rows_needed,
    train_sentencepiece,
)
from user_llm.data.windows import Windows
from user_llm.decoding.catalogue_trie import CatalogueTrie
from user_llm.evaluation.baselines import item_counts
from user_llm.files import replacing
from user_llm.models import parameters
from user_llm.parallel.mesh import batch_shards, make_mesh
from user_llm.parallel.processes import lead_makes

MAX_VOCABULARY_REVIEWS = 200_000  # read by a vocabulary of our own, evenly spread over the training windows
VOCABULARY, CATALOGUE = "vocabulary", "catalogue.json"  # in the workdir

_logger = logging.getLogger(__name__)


class Experiment:
    """What the stages and the evaluation of one config share.

    Args:
      config: a validated config (`configs/base.py`).
      workdir: where everything the experiment makes is kept.
      mesh: the devices to use; None: the config's mesh over all of them.
    """

    def __init__(self, config: ConfigDict, workdir: Path, mesh: Mesh | None = None):
        self.config = config
        self.workdir = workdir
        self.mesh = make_mesh(config.compute.mesh) if mesh is None else mesh
        _check_batch_sizes(config, batch_shards(self.mesh))

    @functools.cached_property
    def table(self) -> TimelineTable:
        """The timelines; built from the raw files where they are not built yet."""
        data = self.config.data
        return load_timelines(
            data.dataset,
            raw_path=data.raw_path or None,
            data_dir=data.data_dir or None,
            max_malformed=data.max_malformed,
            simulated=data.simulated.to_dict() if data.dataset.endswith("/simulated") else None,
            options=data.amazon_reviews.to_dict() if data.dataset.startswith("amazon_reviews/") else None,
        )

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """Catalogue, rating names and the data's fingerprint, kept: a finished run needs its dataset no more."""
        path = self.workdir / CATALOGUE
        lead_makes(path, lambda: self._write_facts(path))
        facts = json.loads(path.read_text())
        facts["catalogue"]["item_categories"] = np.array(facts["catalogue"]["item_categories"], np.int32)
        return facts

    def _write_facts(self, path: Path) -> None:
        catalogue = dataclasses.asdict(self.table.catalogue)
        catalogue["item_categories"] = catalogue["item_categories"].tolist()
        with replacing(path) as partial:
            partial.write_text(
                json.dumps(
                    {
                        "catalogue": catalogue,
                        "rating_names": self.table.rating_names,
                        "fingerprint": self.table.fingerprint,
                    }
                )
            )

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        """The items."""
        return Catalogue(**self.facts["catalogue"])

    def windows(self, split: str, table: TimelineTable | None = None) -> Windows:
        """The windows of `train`, `validation` or `test`; of another `table` where one is given."""
        data = self.config.data
        return Windows(
            table or self.table,
            history_length=data.history_length,
            split=split,
            min_history=data.min_history or None,
            validation=data.validation,
        )

    @functools.cached_property
    def item_counts(self) -> np.ndarray:
        """int64 `[I+1]`: how often each item occurs among the events a model may learn from."""
        return self.count_items(self.table)

    def count_items(self, table: TimelineTable) -> np.ndarray:
        """The same of another table."""
        splits = ("test", "validation") if self.config.data.validation else ("test",)
        held_out = [self.windows(split, table) for split in splits]
        return item_counts(table.item, table.catalogue.num_items, held_out)

    @functools.cached_property
    def vocabulary(self) -> seqio.Vocabulary:
        """The LLM's vocabulary, kept in the workdir: the one named, the checkpoint's, or one trained here."""
        folder = self.workdir / VOCABULARY
        lead_makes(folder, lambda: self._write_vocabulary(folder))
        return load_vocabulary(folder)

    def _write_vocabulary(self, folder: Path) -> None:
        llm = self.config.llm
        with replacing(folder) as partial:
            if source := llm.vocabulary or llm.checkpoint:
                vocabulary = load_vocabulary(huggingface.resolve(source) if source == llm.checkpoint else source)
                self._check_rows(vocabulary, source)
                copy_vocabulary(vocabulary, partial)
            else:
                partial.mkdir()
                train_sentencepiece(self._texts(), llm.vocabulary_size, partial / TOKENIZER_FILE)

    def _texts(self) -> list[str]:
        """What a vocabulary is trained on: catalogue, the task's words, and training reviews where it writes them."""
        texts = [*self._documents, *self._wording.texts()]
        if self.config.task == "review_generation":
            texts += [*self.facts["rating_names"], *self.table.reviews(self.vocabulary_events)]
        return texts

    @functools.cached_property
    def vocabulary_events(self) -> np.ndarray:
        """Places int64 of the events whose reviews a vocabulary of our own reads: labels of training windows."""
        llm = self.config.llm
        if self.config.task != "review_generation" or llm.vocabulary or llm.checkpoint:
            return np.zeros(0, np.int64)
        windows = self.windows("train")
        ids = np.linspace(0, len(windows) - 1, min(len(windows), MAX_VOCABULARY_REVIEWS)).astype(np.int64)
        return windows.label_positions(ids)

    def _check_rows(self, vocabulary: seqio.Vocabulary, source: str) -> None:
        llm = self.config.llm
        if named := llm.checkpoint or llm.architecture:
            needed, rows = rows_needed(vocabulary), huggingface.load_config(named).vocab_size
            if needed > rows:
                raise ConfigError(
                    f"the vocabulary of {source} has {needed} pieces, but the model of {named} has rows for {rows}: "
                    "use its own tokenizer"
                )

    @functools.cached_property
    def names(self) -> Names:
        """Titles, categories and ratings in tokens."""
        catalogue, most = self.catalogue, self.config.prompt.max_targets
        titles, categories, ratings = (
            NameTokens(names, self.vocabulary, most)
            for names in (catalogue.titles, catalogue.category_names, self.facts["rating_names"])
        )
        _logger.info(
            "%d titles in %d pieces at most; %d of them cut at prompt.max_targets=%d; %d duplicates numbered",
            *(catalogue.num_items, titles.lengths.max(), titles.cut, most, catalogue.duplicates),
        )
        return Names(titles, categories, ratings, catalogue.item_categories)

    @functools.cached_property
    def prompts(self) -> Prompts:
        """The task's prompts in tokens."""
        config = self.config
        return Prompts(
            self.names, self._wording, max_inputs=config.prompt.max_inputs, text_history=config.data.text_history
        )

    @functools.cached_property
    def answers(self) -> Answers:
        """The task's right answers in tokens."""
        task, catalogue = self.config.task, self.catalogue
        if task == "next_item":
            return TitleAnswers(catalogue.titles, self.names.titles)
        if task == "favorite_category":
            return FavoriteCategoryAnswers(catalogue.category_names, self.names.categories, catalogue.item_categories)
        return ReviewAnswers(self.table, self.vocabulary, self.config.prompt.max_targets)

    def source(self, split: str) -> UserLLMSource:
        """The windows of a split with their prompts and answers."""
        return UserLLMSource(self.windows(split), self.prompts, self.answers)

    def encoder_source(self, split: str) -> Windows | FavoriteCategorySource:
        """What the encoder learns from: the windows of a split, with their favourite category where that is learnt."""
        windows = self.windows(split)
        if self.config.encoder.dual_encoder.label == "favorite_category":
            return FavoriteCategorySource(windows, self.catalogue.item_categories)
        return windows

    @functools.cached_property
    def text_source(self) -> TextSource:
        """What a language model trained from scratch reads."""
        source = TextSource(self._documents, self.source("train"), max_length=self.config.llm.max_length)
        _logger.info("%d texts to learn from; %d documents cut at llm.max_length", len(source), source.cut)
        return source

    def check(self) -> None:
        """Finds what would stop a later stage, before the first one spends hours: data, prompts, shapes, lengths.

        Raises:
          ConfigError, ValueError: what does not fit, and the key to change.
        """
        self._check_data()
        self._check_fields()
        if len(self.windows("train")) == 0 or len(self.windows("test")) == 0:
            data = self.config.data
            raise ConfigError(
                f"no timeline of {data.dataset} is long enough for config.data.history_length={data.history_length} "
                f"with min_history={data.min_history}: lower them"
            )
        if not {"llm", "user_llm"} & set(self.config.stages):
            parameters.abstract(self.assembly.encoder)
            return
        parameters.abstract(self.assembly.user_llm)
        source, most = self.source("train"), self.assembly.language_model_config.max_length
        soft = self.assembly.soft_prompt_length
        if soft + source.length > most:
            also = f" after a soft prompt of {soft}" if soft else ""
            raise ConfigError(
                f"a prompt and its answer take {source.length} tokens{also}, but the LLM reads {most}: lower "
                "config.prompt.max_inputs or max_targets"
                + (", data.history_length, or enable integration.perceiver" if soft else "")
            )
        if isinstance(self.answers, ReviewAnswers):
            ids = np.linspace(0, len(source) - 1, min(1000, len(source))).astype(np.int64)
            if cut := self.answers.count_cut(source.windows.label_positions(ids)):
                _logger.warning(
                    "%d of %d reviews are longer than config.prompt.max_targets=%d tokens: their ends are not learnt",
                    *(cut, len(ids), self.answers.width),
                )
        sample = source.gather(np.arange(min(1000, len(source))))["dropped_events"]
        if sample.any():
            _logger.warning(
                "Prompts drop their oldest events: %.1f of text_history=%d on average do not fit into "
                "config.prompt.max_inputs=%d tokens",
                *(sample.mean(), self.config.data.text_history, self.config.prompt.max_inputs),
            )

    def _check_data(self) -> None:
        """Raises ConfigError where this host reads other data than those the workdir's catalogue is of."""
        if self.table.fingerprint != self.facts["fingerprint"]:
            raise ConfigError(
                f"this host reads other raw files of {self.config.data.dataset} than those {self.workdir} was made "
                "of (their content's hash differs): name the same with config.data.raw_path"
            )

    def _check_fields(self) -> None:
        """Raises ConfigError where the task or the encoder reads what the dataset has not."""
        config, dataset = self.config, self.config.data.dataset
        has = {"category": len(self.catalogue.category_names) > 1, "rating": len(self.facts["rating_names"]) > 1}
        missing = [name for name in config.encoder.features if not has.get(name, True)]
        if missing and ("encoder" in config.stages or config.integration.kind != "none"):
            left = tuple(name for name in config.encoder.features if name not in missing)
            raise ConfigError(
                f"{dataset} has no {' and no '.join(missing)} for the encoder to read: "
                f'set "--config.encoder.features={left}"'
            )
        if config.task == "favorite_category" and not has["category"]:
            raise ConfigError(f"{dataset} has no categories, so config.task='favorite_category' has no answer")
        if config.task == "review_generation" and not self.table.has_reviews:
            raise ConfigError(f"{dataset} has no reviews, so config.task='review_generation' has no answer")

    @functools.cached_property
    def answer_trie(self) -> CatalogueTrie:
        """The names an answer may be: titles, or categories."""
        names = self.names.categories if self.config.task == "favorite_category" else self.names.titles
        return CatalogueTrie.build(names.tokens, names.lengths, self.vocabulary.eos_id)

    def read_titles(self, tokens: np.ndarray) -> np.ndarray:
        """The items that free beams name: tokens int `[B, J, T]` → item ids int32 `[B, J]`, 0 where it is no title."""
        texts = decode_batch(self.vocabulary, tokens.reshape(-1, tokens.shape[-1]))
        items = [self._item_of_title.get(text, 0) for text in texts]
        return np.array(items, np.int32).reshape(tokens.shape[:-1])

    @functools.cached_property
    def _item_of_title(self) -> dict[str, int]:
        # As the tokens spell them: a title cut at max_targets is answered by what is left of it.
        titles = decode_batch(self.vocabulary, self.names.titles.tokens, self.names.titles.lengths)
        return {title: item for item, title in reversed(list(enumerate(titles))) if item}

    @functools.cached_property
    def assembly(self) -> Assembly:
        """The models."""
        catalogue = self.catalogue
        return Assembly(
            config=self.config,
            item_categories=catalogue.item_categories,
            num_categories=len(catalogue.category_names) - 1,
            num_ratings=len(self.facts["rating_names"]) - 1,
            vocabulary_size=rows_needed(self.vocabulary),
        )

    @property
    def _noun(self) -> str:
        return noun_of(self.config.data.dataset)

    @property
    def _wording(self) -> Wording:
        if self.config.task == "next_item":
            return next_item(self._noun)
        if self.config.task == "favorite_category":
            return favorite_category(self._noun, category_noun_of(self.config.data.dataset))
        return review_generation(self._noun)

    @functools.cached_property
    def _documents(self) -> list[str]:
        return catalogue_documents(self.catalogue, self._noun)


def _check_batch_sizes(config: ConfigDict, shards: int) -> None:
    sizes = {
        f"training.{name}.batch_size / accumulate": config.training[name].batch_size // config.training[name].accumulate
        for name in config.stages
    }
    for key, size in {**sizes, "evaluation.batch_size": config.evaluation.batch_size}.items():
        if size % shards:
            raise ConfigError(f"config.{key} = {size}: expected a multiple of the {shards} devices a batch is cut over")

"""The data and models of one experiment, each made once, on first use."""

import dataclasses
import functools
import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import seqio
from jax.sharding import Mesh
from ml_collections import ConfigDict

from user_llm.assembly import Assembly
from user_llm.checkpoints import huggingface
from user_llm.config import ConfigError
from user_llm.data.feature_converters import TextSource, UserLLMSource
from user_llm.data.prompts import NextItemPrompts, catalogue_documents, next_item, noun_of
from user_llm.data.timelines import Catalogue, TimelineTable, load_timelines
from user_llm.data.vocabularies import (
    TOKENIZER_FILE,
    TitleTokens,
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
        )

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """Catalogue, rating names and the data's fingerprint, kept: a finished run needs its dataset no more."""
        path = self.workdir / CATALOGUE
        if not path.exists():
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
        facts = json.loads(path.read_text())
        facts["catalogue"]["item_categories"] = np.array(facts["catalogue"]["item_categories"], np.int32)
        return facts

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        """The items."""
        return Catalogue(**self.facts["catalogue"])

    def windows(self, split: str) -> Windows:
        """The windows of `train`, `validation` or `test`."""
        data = self.config.data
        return Windows(
            self.table,
            history_length=data.history_length,
            split=split,
            min_history=data.min_history or None,
            validation=data.validation,
        )

    @functools.cached_property
    def item_counts(self) -> np.ndarray:
        """int64 `[I+1]`: how often each item occurs among the events a model may learn from."""
        held_out = [self.windows(split) for split in ("test", *(["validation"] if self.config.data.validation else []))]
        return item_counts(self.table.item, self.catalogue.num_items, held_out)

    @functools.cached_property
    def vocabulary(self) -> seqio.Vocabulary:
        """The LLM's vocabulary, kept in the workdir: the one named, the checkpoint's, or one trained here."""
        llm, folder = self.config.llm, self.workdir / VOCABULARY
        if folder.exists():
            return load_vocabulary(folder)
        with replacing(folder) as partial:
            if source := llm.vocabulary or llm.checkpoint:
                vocabulary = load_vocabulary(huggingface.resolve(source) if source == llm.checkpoint else source)
                self._check_rows(vocabulary, source)
                copy_vocabulary(vocabulary, partial)
            else:
                partial.mkdir()
                texts = [*self._documents, *self._wording_texts]
                train_sentencepiece(texts, llm.vocabulary_size, partial / TOKENIZER_FILE)
        return load_vocabulary(folder)

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
    def prompts(self) -> NextItemPrompts:
        """Prompts and titles in tokens."""
        config = self.config
        titles = TitleTokens(self.catalogue, self.vocabulary, config.prompt.max_targets)
        _logger.info(
            "%d titles in %d pieces at most; %d of them cut at prompt.max_targets=%d; %d duplicates numbered",
            *(self.catalogue.num_items, titles.lengths.max(), titles.cut, config.prompt.max_targets),
            self.catalogue.duplicates,
        )
        return NextItemPrompts(
            titles, self._wording, max_inputs=config.prompt.max_inputs, text_history=config.data.text_history
        )

    def source(self, split: str) -> UserLLMSource:
        """The windows of a split with their prompts and answers."""
        return UserLLMSource(self.windows(split), self.prompts)

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
        if jax.process_count() > 1:
            raise ConfigError(f"this run has {jax.process_count()} hosts; only one is supported yet")
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
        sample = source.gather(np.arange(min(1000, len(source))))["dropped_events"]
        if sample.any():
            _logger.warning(
                "Prompts drop their oldest events: %.1f of text_history=%d on average do not fit into "
                "config.prompt.max_inputs=%d tokens",
                *(sample.mean(), self.config.data.text_history, self.config.prompt.max_inputs),
            )

    @functools.cached_property
    def trie(self) -> CatalogueTrie:
        """The titles an answer may be."""
        titles = self.prompts.titles
        return CatalogueTrie.build(titles.tokens, titles.lengths, self.vocabulary.eos_id)

    def read_titles(self, tokens: np.ndarray) -> np.ndarray:
        """The items that free beams name: tokens int `[B, J, T]` → item ids int32 `[B, J]`, 0 where it is no title."""
        texts = decode_batch(self.vocabulary, tokens.reshape(-1, tokens.shape[-1]))
        items = [self._item_of_title.get(text, 0) for text in texts]
        return np.array(items, np.int32).reshape(tokens.shape[:-1])

    @functools.cached_property
    def _item_of_title(self) -> dict[str, int]:
        # As the tokens spell them: a title cut at max_targets is answered by what is left of it.
        titles = decode_batch(self.vocabulary, self.prompts.titles.tokens, self.prompts.titles.lengths)
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
    def _wording(self):
        return next_item(self._noun)

    @property
    def _wording_texts(self) -> list[str]:
        wording = self._wording
        return [wording.plain, wording.before, wording.separator, wording.after]

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

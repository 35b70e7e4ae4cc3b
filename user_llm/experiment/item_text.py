"""What a language model knows of items by their names, for encoders with `encoder.item_text`, kept in the workdir.

An item's vector is the mean of the model's embeddings of the tokens of its title and categories, the rarer a token the
more it counts; of all of them the directions in which items differ most, each with variance 1. It takes seconds, and no
pass through the model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sparse

from user_llm.checkpoints import huggingface
from user_llm.checksums import changed, checksums, read_signed, write_signed
from user_llm.data.timelines import Catalogue
from user_llm.errors import UserError
from user_llm.experiment.experiment import Experiment
from user_llm.files import replacing
from user_llm.models.event_embedding import TEXT_WIDTH
from user_llm.models.model import Model
from user_llm.parallel.processes import fetch, lead_makes

FOLDER = "item_text"
_TABLE, _FACTS = "table.npy", "facts.json"


def item_text(experiment: Experiment, finished: Mapping[str, Model]) -> np.ndarray:
    """float32 `[I+1, TEXT_WIDTH]`, zeros for the padding item; computed where the workdir does not have it.

    Args:
      finished: the models of earlier stages; `llm` is read where the config names no checkpoint.

    Raises:
      UserError: what the workdir has is damaged.
    """
    folder = experiment.workdir / FOLDER
    if not (folder / _FACTS).is_file():
        vectors = name_vectors(
            _texts(experiment.catalogue), experiment.vocabulary.encode_batch, _table(experiment, finished)
        )
        lead_makes(folder / _FACTS, lambda: _write(folder, vectors))
    advice = f"delete {folder}, and it is computed anew"
    for line in changed(folder, {_TABLE: read_signed(folder / _FACTS, advice)["table"]}):
        raise UserError(f"{line}: {advice}")
    return np.load(folder / _TABLE)


def name_vectors(texts: Sequence[str], encode, table: np.ndarray) -> np.ndarray:
    """Vectors of texts, of the first padding alone: float32 `[I+1, TEXT_WIDTH]`.

    Args:
      encode: texts → token ids of each.
      table: float `[V, D]`, an embedding a token.
    """
    tokens = encode(list(texts[1:]))
    rows = np.repeat(np.arange(len(tokens)), [len(one) for one in tokens])
    columns = np.concatenate([np.zeros(0, np.int64), *map(np.asarray, tokens)]).astype(np.int64)
    counts = sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(tokens), len(table))).tocsr()
    documents = np.bincount(counts.indices, minlength=len(table))
    weighted = counts @ sparse.diags_array(np.log(len(tokens) / np.maximum(documents, 1)))
    weighted = sparse.diags_array(1 / np.maximum(weighted.sum(axis=1), 1e-9)) @ weighted
    x = weighted @ table.astype(np.float32)
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)
    variances, directions = np.linalg.eigh(x.T @ x / len(x))
    most = min(TEXT_WIDTH, int(np.sum(variances > 1e-6 * variances[-1])))
    vectors = np.zeros((len(texts), TEXT_WIDTH), np.float32)
    vectors[1:, :most] = x @ (directions[:, ::-1][:, :most] / np.sqrt(variances[::-1][:most]))
    return vectors


def _texts(catalogue: Catalogue) -> list[str]:
    """ "Title (Category, Category)" of each item; "" for the padding."""
    texts = [""]
    for title, ids in zip(catalogue.titles[1:], catalogue.item_categories[1:], strict=True):
        names = ", ".join(catalogue.category_names[category] for category in ids if category)
        texts.append(f"{title} ({names})" if names else title)
    return texts


def _table(experiment: Experiment, finished: Mapping[str, Model]) -> np.ndarray:
    """float `[V, D]`, the language model's embeddings of the run's tokens."""
    if checkpoint := experiment.config.llm.checkpoint:
        table = np.asarray(
            huggingface.load_tables(checkpoint, experiment.assembly.language_model_config)["embedding_VD"]
        )
        kept = experiment.vocabulary.kept
        return table if kept is None else table[kept]
    return fetch(finished["llm"].parameters["embedding_VD"])


def _write(folder: Path, vectors: np.ndarray) -> None:
    with replacing(folder) as partial:
        partial.mkdir()
        np.save(partial / _TABLE, vectors)
        write_signed(partial / _FACTS, {"table": checksums(partial, [_TABLE])[_TABLE]})

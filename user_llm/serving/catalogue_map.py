"""The items on a plane, where those that an encoder has learnt to be alike lie together; and a user among them."""

from typing import Any, cast

import numpy as np
from flax import nnx

from user_llm.api import UserModel
from user_llm.embeddings import UserEmbeddings
from user_llm.errors import UserError
from user_llm.models.event_embedding import FeatureEmbeddings
from user_llm.models.user_llm import UserLLM
from user_llm.parallel.processes import fetch

MOST = 20_000
"""Items that are shown; of a larger catalogue as many, evenly spread over the ids: a run keeps no counts of items."""


class CatalogueMap:
    """The two directions in which the item embeddings of a run's encoder differ most (PCA of the items shown).

    Coordinates are scaled alike in both directions, so that the farthest item shown is at 1 or -1 in one of them.

    Args:
      model: of the run. Of one whose LLM reads no encoder, or one without item embeddings, there is no map.
    """

    def __init__(self, model: UserModel):
        self._model = model
        vectors = _item_vectors(model)
        self._drawn = None if vectors is None else self._draw(vectors)

    def _draw(self, vectors: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        """What `points` answers, and the place of every item `[I + 1, 2]`, of the padding, too."""
        shown, catalogue = np.arange(1, len(vectors)), self._model.catalogue
        if len(shown) > MOST:
            shown = np.linspace(1, len(vectors) - 1, MOST).astype(np.int64)
        axes, middle = _plane(vectors[shown])
        places = vectors @ axes.T - middle @ axes.T
        places /= np.abs(places[shown]).max() or 1
        points = {
            "points": np.round(places[shown].astype(np.float64), 4).tolist(),
            "titles": [catalogue.titles[item] for item in shown.tolist()],
            "categories": (catalogue.item_categories[shown, 0] - 1).tolist(),
        }
        return points, places

    def points(self) -> dict[str, Any]:
        """The items shown, in order of their ids, as `GET /map` answers.

        `points` `[[x, y], …]`; their `titles`; `categories`, the place of each one's first category among the run's
        (`category_names[1:]`), -1 where it has none.

        Raises:
          UserError: there is no map.
        """
        points, _ = self._known()
        return points

    def place(self, users: UserEmbeddings) -> tuple[float, float]:
        """Where a user stands: in the middle of the items of its kept events; without any, of the map.

        What the encoder asks for is no point among the items. The softmax compares directions, and a query is as long
        as its norm makes it; of an encoder that reads more than items a head stands between, which an LLM's encoder
        has no more. The items of the events lie on the map for every encoder, and each new event moves their mean.

        Raises:
          UserError: there is no map; the user was encoded by another run.
        """
        _, places = self._known()
        users.check(*self._model.fingerprints)
        (items,) = users.items
        x, y = places[items[items > 0]].mean(axis=0) if items.any() else (0, 0)
        return float(x), float(y)

    def _known(self) -> tuple[dict[str, Any], np.ndarray]:
        if self._drawn is None:
            raise UserError(
                f"the LLM of {self._model.study.workdir} reads no item embeddings: a map needs a run with an encoder "
                "of items (config.integration.kind and config.encoder.features)."
            )
        return self._drawn


def _item_vectors(model: UserModel) -> np.ndarray | None:
    """float32 `[I + 1, U]`, what the LLM's encoder embeds items as; None: it does not."""
    encoder = cast(UserLLM, model.contextualised.module()).encoder
    for _, part in () if encoder is None else nnx.iter_modules(cast(nnx.Module, encoder)):
        if isinstance(part, FeatureEmbeddings) and "item" in part.features:
            return np.asarray(fetch(part.vectors("item"))[: part.num_classes("item")], np.float32)
    return None


def _plane(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two main axes `[2, U]` of vectors `[n, U]`, whose largest entry is positive, and their mean `[U]`."""
    middle = vectors.mean(axis=0)
    _, _, axes = np.linalg.svd(vectors - middle, full_matrices=False)
    axes = np.pad(axes[:2], ((0, max(0, 2 - len(axes))), (0, 0)))  # of fewer than two items, or one dimension
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return axes * np.where(largest < 0, -1, 1), middle

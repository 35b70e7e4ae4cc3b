"""The catalogue's metadata, as every builder writes it."""

from collections.abc import Sequence
from typing import Any

NO_CATEGORY = "(no category)"
"""The category of an item without one, in a dataset that has categories."""


def catalogue_metadata(
    raw_ids: Sequence[str], titles: Sequence[str], categories: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """The metadata of items in the order of their ids: `raw_ids`, `titles`, `category_names`, `item_categories`.

    Entry 0 of each is padding. Category ids count from 1 in the order of the sorted names; an item's stay in the
    order given, each once.

    Args:
      raw_ids: the source's id of each item.
      titles: of each item.
      categories: names for each item.
    """
    names = ["", *sorted({name for item in categories for name in item})]
    ids = {name: i for i, name in enumerate(names)}
    return {
        "raw_ids": ["", *raw_ids],
        "titles": ["", *titles],
        "category_names": names,
        "item_categories": [[], *([ids[name] for name in dict.fromkeys(item)] for item in categories)],
    }

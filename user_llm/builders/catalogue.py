"""The catalogue, as every builder makes it and writes it down."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from user_llm.columns import Texts, write_column

FIELDS = ("titles", "raw_ids", "category_names", "item_categories")
"""What the catalogue is made of, in lists."""

NO_CATEGORY = "(no category)"
"""The category of an item without one, in a dataset that has categories."""


def catalogue_lists(
    raw_ids: Sequence[str], titles: Sequence[str], categories: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """The `FIELDS` of items in the order of their ids.

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


def write_catalogue(catalogue: Mapping[str, Sequence[Any]], folder: Path) -> int:
    """Writes what `catalogue_lists` gives as columns (`built.CATALOGUE`) into a new folder.

    Titles become unique, because an item is answered by its title: among items of one title, the first (by item id)
    keeps it and later ones get " [2]", " [3]" and so on behind it.

    Returns: how many titles carry such a number.
    """
    titles, categories = unique_titles(catalogue["titles"]), catalogue["item_categories"]
    lengths = np.fromiter(map(len, categories), np.int64, len(categories))
    ids = np.fromiter((id_ for item in categories for id_ in item), np.int32, int(lengths.sum()))
    folder.mkdir()
    write_columns(folder, titles, catalogue["raw_ids"], catalogue["category_names"], ids, lengths)
    return sum(a != b for a, b in zip(titles, catalogue["titles"], strict=True))


def write_columns(
    folder: Path,
    titles: Iterable[str],
    raw_ids: Iterable[str],
    category_names: Iterable[str],
    category_ids: np.ndarray,
    lengths: np.ndarray,
) -> None:
    """Writes `built.CATALOGUE` into a folder.

    Args:
      folder: the folder.
      titles, raw_ids: of the items, the padding first.
      category_names: by category id.
      category_ids: int [n], those of an item behind those of the one before.
      lengths: int [I + 1], how many each item has.
    """
    for name, texts in {"title": titles, "raw_id": raw_ids, "category_name": category_names}.items():
        Texts.of(texts).save(folder, name)
    write_column(folder, "category_ids", category_ids.astype(np.int32))
    write_column(folder, "category_offsets", np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))


def unique_titles(titles: Sequence[str]) -> list[str]:
    """Titles with a number behind those that others have; entry 0, the padding's, stays."""
    taken, seen = set(titles), set()
    unique = list(titles[:1])
    for title in titles[1:]:
        name, number = title, 2
        while name in seen or (name != title and name in taken):  # a source may hold "Title [2]" itself
            name, number = f"{title} [{number}]", number + 1
        seen.add(name)
        unique.append(name)
    return unique

"""The catalogue in columns."""

import numpy as np
import pytest

from user_llm.builders.catalogue import unique_titles, write_catalogue
from user_llm.data.timelines import Catalogue


def test_equal_titles_are_numbered():
    titles = ["", "A", "B", "A", "A [2]", "A", "B", ""]
    assert unique_titles(titles) == ["", "A", "B", "A [3]", "A [2]", "A [4]", "B [2]", ""]


CATALOGUES = {
    "several categories": (["", "Ä", "", "Ä"], ["", "7", "8", "9"], ["", "x", "日本"], [[], [2, 1], [], [1]]),
    "no categories": (["", "a"], ["", "1"], [""], [[], []]),
}


@pytest.mark.parametrize("name", CATALOGUES)
def test_what_is_written_is_opened(name, tmp_path):
    fields = ("titles", "raw_ids", "category_names", "item_categories")
    lists = dict(zip(fields, CATALOGUES[name], strict=True))
    duplicates = write_catalogue(lists, tmp_path / "once")
    catalogue = Catalogue.open(tmp_path / "once", duplicates)
    assert list(catalogue.titles) == unique_titles(lists["titles"])
    assert catalogue.duplicates == len(lists["titles"]) - len({*lists["titles"]}) - (lists["titles"].count("") > 1)
    assert list(catalogue.raw_ids) == lists["raw_ids"]
    assert catalogue.category_names == lists["category_names"]
    assert catalogue.num_items == len(lists["titles"]) - 1
    assert [[id_ for id_ in row if id_] for row in catalogue.item_categories.tolist()] == lists["item_categories"]
    (tmp_path / "again").mkdir()
    catalogue.save(tmp_path / "again")
    for path in (tmp_path / "once").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    assert catalogue.item_categories.dtype == np.int32

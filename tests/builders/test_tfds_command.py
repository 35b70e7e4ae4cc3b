"""`tfds build` finds the builders by folder: what it does to get a class, for each folder of `tfds_builders/`."""

import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from user_llm.builders.families import FAMILIES

FOLDER = Path(__file__).resolve().parents[2] / "tfds_builders"


def test_every_family_has_a_folder():
    assert {path.parent.name for path in FOLDER.glob("*/*_dataset_builder.py")} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_gives_the_builder_of_its_family(family, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    for name in [name for name in sys.modules if name == family or name.startswith(f"{family}.")]:
        monkeypatch.delitem(sys.modules, name)
    found = tfds.core.community.builder_cls_from_module(f"{family}.{family}_dataset_builder")
    assert issubclass(found, FAMILIES[family])
    assert found.name == family
    assert found.get_metadata() == FAMILIES[family].get_metadata()
    assert found.get_metadata().description


def test_what_it_builds_is_the_dataset(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FOLDER)
    found = tfds.core.community.builder_cls_from_module("custom.custom_dataset_builder")
    builders = [
        found(config="example", data_dir=tmp_path / "found"),
        FAMILIES["custom"](config="example", data_dir=tmp_path / "ours"),
    ]
    for builder in builders:
        builder.download_and_prepare()
    assert len({builder.info.metadata["fingerprint"] for builder in builders}) == 1

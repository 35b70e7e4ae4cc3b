"""The site's generated page is current, and every key of a config is explained there."""

import importlib.util
from pathlib import Path

from user_llm.keys import DEFAULTS

ROOT = Path(__file__).resolve().parents[1]

spec = importlib.util.spec_from_file_location("config_reference", ROOT / "docs" / "config_reference.py")
config_reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(config_reference)


def explained() -> dict[str, str]:
    """Dotted key → comment, of all keys in the schema's source."""
    found = config_reference.entries(config_reference.SCHEMA.read_text(encoding="utf-8"))
    return {entry.key: entry.comment for entry in found if entry.default}


def test_the_config_reference_is_current():
    written = config_reference.PAGE.read_text(encoding="utf-8")
    assert written == config_reference.page(), "run: python -m docs.config_reference"


def test_every_key_of_the_schema_is_explained():
    keys = {
        f"training.<stage>.{key.split('.')[2]}" if key.startswith("training.") else key: value
        for key, value in DEFAULTS.items()
    }
    assert list(explained()) == [key for key in explained() if key in keys]
    assert explained().keys() == keys.keys()
    assert not [key for key, comment in explained().items() if not comment], "give each a comment in schema.py"


def test_stages_that_differ_are_named_with_their_defaults():
    assert "`training.<stage>.weight_decay` (default `0.001`, `llm` `0.01`, `encoder` `0.1`;" in config_reference.page()


def test_a_key_without_a_comment_has_none_of_its_neighbour():
    source = (
        "def training(**values):\n    stage = ConfigDict(dict(steps=1))  # of a run\n"
        "def get_config():\n"
        "    config.data = ConfigDict(\n        dict(\n            a=1,\n            b=2,  # two\n"
        "            group=ConfigDict(  # of both\n                dict(\n                    c=(3, 4),  # three\n"
        "                )\n            ),\n        )\n    )\n"
    )
    assert [tuple(entry) for entry in config_reference.entries(source)] == [
        ("data", "", ""),
        ("data.a", "`1`", ""),
        ("data.b", "`2`", "two"),
        ("data.group", "", "of both"),
        ("data.group.c", "`(3, 4)`", "three"),
        ("training.<stage>.steps", "`1`", "of a run"),
    ]

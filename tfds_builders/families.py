"""The families of datasets by name: a dataset is `family/config`, as `movielens/20m`."""

import difflib

from tfds_builders import movielens
from tfds_builders.builder import TimelineBuilder

FAMILIES: dict[str, type[TimelineBuilder]] = {"movielens": movielens.Builder}


def dataset_names() -> list[str]:
    """Every dataset that has a name of its own."""
    return [f"{family}/{config}" for family, builder in FAMILIES.items() for config in builder.builder_configs]


def builder_of(name: str, **kwargs) -> TimelineBuilder:
    """The builder of dataset `name` ("family/config"); `kwargs` as for `TimelineBuilder`.

    Raises:
      ValueError: there is no such dataset, or an argument does not belong to it.
    """
    family, _, config = name.partition("/")
    if family not in FAMILIES or config not in FAMILIES[family].builder_configs:
        near = difflib.get_close_matches(name, dataset_names(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the families are {', '.join(FAMILIES)}."
        raise ValueError(f"unknown dataset {name!r}: {hint}")
    return FAMILIES[family](config=config, **kwargs)

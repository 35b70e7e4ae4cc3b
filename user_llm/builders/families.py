"""The families of datasets by name: a dataset is `family/config`, as `movielens/20m`."""

import difflib

from user_llm.builders import amazon_reviews, custom, google_local, movielens
from user_llm.builders.builder import TimelineBuilder
from user_llm.errors import UserError

FAMILIES: dict[str, type[TimelineBuilder]] = {
    "movielens": movielens.Builder,
    "amazon_reviews": amazon_reviews.Builder,
    "google_local": google_local.Builder,
    "custom": custom.Builder,
}


def dataset_names() -> list[str]:
    """Every dataset that has a name of its own."""
    return [f"{family}/{config}" for family, builder in FAMILIES.items() for config in builder.builder_configs]


def builder_of(name: str, *, config: custom.CustomConfig | None = None, **kwargs) -> TimelineBuilder:
    """The builder of dataset `name` ("family/config"); `kwargs` as for `TimelineBuilder`.

    Names of family `custom` are free. `config` says what to build such a dataset from; one that is built needs none.

    Raises:
      UserError: there is no such dataset, or an argument does not belong to it.
    """
    family, _, config_name = str(name).partition("/")
    if family == "custom" and config_name:
        return custom.Builder(config=config or config_name, **kwargs)
    if family not in FAMILIES or config_name not in FAMILIES[family].builder_configs:
        near = difflib.get_close_matches(str(name), dataset_names(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the families are {', '.join(FAMILIES)}."
        raise UserError(f"unknown dataset {name!r}: {hint}")
    if config is not None:
        raise UserError(f"files and columns of your own belong to custom/<name>, not to {name}.")
    return FAMILIES[family](config=config_name, **kwargs)

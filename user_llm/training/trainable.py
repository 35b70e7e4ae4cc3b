"""Training strategies as data (paper 3.2.3): ordered rows of (path regex, does it train?)."""

import re
from collections.abc import Iterable, Sequence

from user_llm.errors import UserError

Rules = Sequence[tuple[str, bool]]

_CONNECTOR = r"(connector|perceiver)/.*"
_ADAPTERS = r"language_model/.*/lora/.*"
_FROZEN_LLM = (r"language_model/.*", False)
_GIVEN = (r"(.*/)?item_text_IE", False)  # what a language model has made of the items' names

STRATEGIES: dict[str, Rules] = {
    "full": (_GIVEN, (_CONNECTOR, True), (r"(encoder|language_model)/.*", True)),
    "lora": (_GIVEN, (_CONNECTOR, True), (r"encoder/.*", True), (_ADAPTERS, True), _FROZEN_LLM),
    "enc": (_GIVEN, (_CONNECTOR, True), (r"encoder/.*", True), _FROZEN_LLM),
    "proj": ((_CONNECTOR, True), (r"encoder/.*", False), _FROZEN_LLM),
}
EVERYTHING: Rules = (_GIVEN, (r".*", True))  # the stages that train one model from scratch


def trainable(paths: Iterable[str], rules: Rules) -> dict[str, bool]:
    """Path → does it train, by the first row whose regex matches the whole path.

    Raises:
      ValueError: a path that no row covers.
      UserError: rules that leave nothing to train.
    """
    result: dict[str, bool] = {}
    for path in paths:
        row = next((trains for regex, trains in rules if re.fullmatch(regex, path)), None)
        if row is None:
            raise ValueError(
                f"No row of the strategy covers the parameter {path}; rows: {[regex for regex, _ in rules]}"
            )
        result[path] = row
    if not any(result.values()):
        raise UserError("The strategy trains no parameter of this model.")
    return result

"""Training strategies as data (paper 3.2.3): ordered rows of (path regex, does it train?)."""

import re
from collections.abc import Iterable, Sequence

Rules = Sequence[tuple[str, bool]]

# The encoder's heads (its own softmaxes) are no part of the contextualised LLM: no loss reaches them.
_HEADS: Rules = ((r"encoder/\w+_head_UU", False),)

STRATEGIES: dict[str, Rules] = {
    "full": (*_HEADS, (r"(encoder|connector|language_model)/.*", True)),
    "enc": (*_HEADS, (r"(encoder|connector)/.*", True), (r"language_model/.*", False)),
    "proj": (*_HEADS, (r"connector/.*", True), (r"(encoder|language_model)/.*", False)),
}
EVERYTHING: Rules = ((r".*", True),)  # the stages that train one model from scratch


def trainable(paths: Iterable[str], rules: Rules) -> dict[str, bool]:
    """Path → does it train, by the first row whose regex matches the whole path.

    Raises:
      ValueError: a path that no row covers, or rules that leave nothing to train.
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
        raise ValueError("The strategy trains no parameter of this model.")
    return result

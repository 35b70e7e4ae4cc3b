"""ROUGE of written texts (Lin 2004), as `rouge_score` computes it."""

from collections.abc import Sequence

import numpy as np
from rouge_score import rouge_scorer

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """F-measures in 0 … 1 of each text against its reference: name → float64 `[n]`. The paper reports 100 times Lsum.

    Lines are the sentences of `rougeLsum`. `rouge_score` compares words of the letters a-z and digits, lower case,
    without stemming: of other scripts nothing is left to compare, and such a pair has 0.

    Raises:
      ValueError: not as many predictions as references.
    """
    scorer = rouge_scorer.RougeScorer(list(ROUGE))
    scores = [
        scorer.score(reference, prediction) for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {name: np.array([score[name].fmeasure for score in scores], np.float64) for name in ROUGE}

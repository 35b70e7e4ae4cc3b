"""Metrics of answers in words: ROUGE of written texts (Lin 2004), as `rouge_score` computes it, and recall of names."""

from collections.abc import Sequence

import numpy as np

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """F-measures in 0 … 1 of each text against its reference: name → float64 `[n]`. The paper reports 100 times Lsum.

    Lines are the sentences of `rougeLsum`. `rouge_score` compares words of the letters a-z and digits, lower case,
    without stemming: of other scripts nothing is left to compare, and such a pair has 0.

    Raises:
      ValueError: not as many predictions as references.
    """
    from rouge_score import rouge_scorer  # brings nltk and SciPy's statistics: three seconds of every start

    scorer = rouge_scorer.RougeScorer(list(ROUGE))
    scores = [
        scorer.score(reference, prediction) for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {name: np.array([score[name].fmeasure for score in scores], np.float64) for name in ROUGE}


def mean_rouge(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Means of `rouge` over the examples whose target has any words; NaN where none has."""
    asked = [(text, target) for target, text in zip(targets, predictions, strict=True) if target.strip()]
    scores = rouge([text for text, _ in asked], [target for _, target in asked])
    return {name: float(values.mean()) if len(values) else float("nan") for name, values in scores.items()}


def recall_of_names(targets: Sequence[str], predictions: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """Recall at 1, 5 and 10: how often a target is among the first names answered; NaN where no target has a name.

    Args:
      targets: the right name of each example; "" for one that has none, which is left out.
      predictions: of each example the names answered, best first, or a single one.
    """
    ranks = []
    for target, names in zip(targets, predictions, strict=True):
        answered = [name.strip() for name in ([names] if isinstance(names, str) else names)]
        if target.strip():
            ranks.append(answered.index(target.strip()) + 1 if target.strip() in answered else np.inf)
    found = np.array(ranks)
    return {f"recall@{k}": float((found <= k).mean()) if ranks else float("nan") for k in (1, 5, 10)}

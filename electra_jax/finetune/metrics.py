"""The metrics of all tasks, on host arrays. METRICS has them by name, and a task names those that it reports.

Classes and numbers are scored here by scikit-learn and SciPy, tags in tag_metrics.py, and answers in answer_metrics.py. Every figure is
a fraction of 1 (a correlation lies in [-1, 1]); the official scorers and the published tables print 100 times as much. All functions
take the gold labels first and the predictions second, with the rows in the same order. A score that would divide by zero is 0, so that
no score is ever NaN. ValueError if there is no row, if the two do not match, or if a label or prediction is not finite.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from electra_jax.finetune.answer_metrics import squad1, squad2
from electra_jax.finetune.tag_metrics import chunks, published_chunks, score_tags
from electra_jax.options import one_of


def accuracy(gold: np.ndarray, predicted: np.ndarray) -> float:
    """The fraction of rows that are right. [N] classes; or [N, C] of several labels, where a row is right only if all its labels are."""
    gold, predicted = _pair(gold, predicted)
    return float(np.mean(np.all((gold == predicted).reshape(len(gold), -1), axis=1)))


def f1(gold: np.ndarray, predicted: np.ndarray) -> float:
    """F1 of class 1 of two classes, as for MRPC and QQP. 0 if no row of class 1 is predicted as class 1, as in scikit-learn.

    Args:
      gold, predicted: [N] of 0 and 1.
    """
    from sklearn import metrics

    return float(metrics.f1_score(*_pair(gold, predicted), zero_division=0.0))


def matthews(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Matthews' correlation of [N] gold and predicted classes (for CoLA; with more than two classes it is Gorodkin's R_K).

    0 if all labels, or all predictions, are of one class. So it is in scikit-learn, which GLUE's own code calls (nyu-mll/GLUE-baselines,
    src/models.py).
    """
    from sklearn import metrics

    gold, predicted = _pair(gold, predicted)
    if _constant(gold) or _constant(predicted):  # scikit-learn gives 0 as well, with a warning if labels and predictions share one class
        return 0.0
    return float(metrics.matthews_corrcoef(gold, predicted))


def pearson(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson's correlation of [N] gold and predicted numbers (STS-B)."""
    return _correlation("pearsonr", gold, predicted)


def spearman(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Spearman's rank correlation of [N] gold and predicted numbers (STS-B); equal numbers have their mean rank."""
    return _correlation("spearmanr", gold, predicted)


def _correlation(name: str, gold: np.ndarray, predicted: np.ndarray) -> float:
    """By the functions of SciPy that GLUE's own code calls (nyu-mll/GLUE-baselines, src/models.py). If all labels, or all predictions, are
    equal, these give NaN. Here the score is then 0, as for `matthews`, because a model that always says the same has learned nothing."""
    from scipy import stats

    gold, predicted = (x.astype(np.float64) for x in _pair(gold, predicted))
    if _constant(gold) or _constant(predicted):
        return 0.0
    return float(getattr(stats, name)(gold, predicted).statistic)


def macro_f1(gold: np.ndarray, predicted: np.ndarray) -> float:
    """The unweighted mean of the classes' F1, as in scikit-learn.

    [N] classes: over the classes that occur among the labels or the predictions. [N, C] of several labels: over all C labels, where a
    label that occurs in neither counts 0.
    """
    return _averaged_f1("macro", gold, predicted)


def micro_f1(gold: np.ndarray, predicted: np.ndarray) -> float:
    """F1 over the decisions on all classes together. For [N] classes it equals the accuracy; for [N, C] of several labels it is 0 if no
    label is right."""
    return _averaged_f1("micro", gold, predicted)


def _averaged_f1(average: str, gold: np.ndarray, predicted: np.ndarray) -> float:
    from sklearn import metrics

    gold, predicted = _pair(gold, predicted)
    if gold.ndim == 2 and gold.shape[1] == 1:  # scikit-learn would read one column as classes, not as one label that a row has or has not
        return f1(gold[:, 0], predicted[:, 0])
    return float(metrics.f1_score(gold, predicted, average=average, zero_division=0.0))


def confusion(gold: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 [num_classes, num_classes]: at [i, j], how many rows of class i were predicted as class j.

    Args:
      gold, predicted: [N] whole numbers from 0 to num_classes - 1; ValueError for any other.
    """
    gold, predicted = _pair(gold, predicted)
    if min(gold.min(), predicted.min()) < 0 or max(gold.max(), predicted.max()) >= num_classes:
        raise ValueError(f"a class is not among 0 to {num_classes - 1}")
    cells = np.bincount(gold.astype(np.int64) * num_classes + predicted.astype(np.int64), minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def _constant(values: np.ndarray) -> bool:
    return bool(np.all(values == values[0]))


def _pair(gold: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gold, predicted = np.asarray(gold), np.asarray(predicted)
    if gold.shape != predicted.shape:
        raise ValueError(f"the gold labels have the shape {gold.shape} and the predictions {predicted.shape}")
    if not len(gold):
        raise ValueError("there is no row to score")
    for name, values in (("labels", gold), ("predictions", predicted)):
        if wrong := int(np.sum(~np.isfinite(values))):
            raise ValueError(f"{wrong} of {values.size} {name} are not finite numbers")
    return gold, predicted


def _named(metric: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[np.ndarray, np.ndarray], dict[str, float]]:
    return lambda gold, predicted: {metric.__name__: metric(gold, predicted)}


# Each metric gives {figure: value}. `_named` ones compare arrays of classes or numbers; those of tags and chunks, a sequence of tags for
# each sentence; those of SQuAD, texts by question ID.
METRICS: dict[str, Callable[..., dict[str, float]]] = {
    **{metric.__name__: _named(metric) for metric in (accuracy, f1, matthews, pearson, spearman, macro_f1, micro_f1)},
    "tags": lambda gold, predicted: {"accuracy": score_tags(gold, predicted).accuracy},
    "chunks": lambda gold, predicted: score_tags(gold, predicted, chunks).figures(),
    "published_chunks": lambda gold, predicted: score_tags(gold, predicted, published_chunks).figures(),
    "squad1": squad1,
    "squad2": squad2,
}


def measure(names: Iterable[str], gold: Any, predicted: Any, **settings: Any) -> dict[str, float]:
    """{figure: value} of all these metrics. UserError for a name that is not in METRICS.

    Args:
      settings: further arguments of the named metrics, such as `no_answer` and `threshold` of squad2.
    """
    figures = {}
    for name in names:
        one_of("metric", name, METRICS)
        figures |= METRICS[name](gold, predicted, **settings)
    return figures

"""Scores of classes and numbers against their definitions written out, and against scikit-learn and SciPy."""

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from electra_jax.cli import UserError
from electra_jax.finetune import metrics

CASES = 1000


def classes(r: np.random.Generator, most: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Gold and predicted classes of a few rows; at times one side, or both, are of one class."""
    rows, number = r.integers(1, 30), r.integers(1, most + 1)
    gold, predicted = r.integers(0, number, rows), r.integers(0, number, rows)
    if r.random() < 0.2:
        gold[:] = gold[0]
    if r.random() < 0.2:
        predicted[:] = predicted[0]
    return gold, predicted


def labels(r: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """[N, C] of several labels; at times no row has a label, or no prediction, or a column is empty."""
    shape = r.integers(1, 12), r.integers(1, 5)
    gold, predicted = r.random(shape) < r.choice([0.0, 0.1, 0.5]), r.random(shape) < r.choice([0.0, 0.2, 0.5])
    gold[:, 0] &= r.random() < 0.5
    return gold, predicted


def numbers(r: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Gold and predicted numbers with ties; at times all of one side are equal, or there is one row."""
    rows = r.integers(1, 20)
    gold = np.round(r.uniform(0, 5, rows), r.integers(0, 3))
    predicted = np.round(gold + r.normal(size=rows) * r.choice([0.1, 3.0]), r.integers(0, 3)).astype(r.choice([np.float32, np.float64]))
    if r.random() < 0.1:
        gold[:] = gold[0]
    if r.random() < 0.1:
        predicted[:] = predicted[0]
    return gold, predicted


def f1_of(gold, predicted) -> float:
    """By the definition, from flags."""
    hits, called, there = sum(g and p for g, p in zip(gold, predicted, strict=True)), sum(predicted), sum(gold)
    precision, recall = hits / called if called else 0.0, hits / there if there else 0.0
    return 2 * precision * recall / (precision + recall) if hits else 0.0


def correlation(x, y) -> float:
    """Of vectors, or of rows of several columns together; 0 where one does not vary."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    spread = math.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / spread) if spread else 0.0


def ranks(x) -> np.ndarray:
    return np.array([np.sum(x < one) + (np.sum(x == one) + 1) / 2 for one in x])


def test_classes():
    r = np.random.default_rng(0)
    for case in range(CASES):
        gold, predicted = classes(r)
        every = sorted(set(gold) | set(predicted))
        assert metrics.accuracy(gold, predicted) == sum(map(int.__eq__, gold.tolist(), predicted.tolist())) / len(gold)
        if case % 10 == 0:
            assert metrics.micro_f1(gold, predicted) == pytest.approx(metrics.accuracy(gold, predicted), abs=1e-12)
        of_each = [f1_of(gold == one, predicted == one) for one in every]
        assert metrics.macro_f1(gold, predicted) == pytest.approx(sum(of_each) / len(every), abs=1e-12)
        one_hot = [(x[:, None] == np.arange(5)).astype(float) for x in (gold, predicted)]
        assert metrics.matthews(gold, predicted) == pytest.approx(correlation(*one_hot), abs=1e-9)
        gold, predicted = gold % 2, predicted % 2
        assert metrics.f1(gold, predicted) == pytest.approx(f1_of(gold == 1, predicted == 1), abs=1e-12)


def test_several_labels():
    r = np.random.default_rng(1)
    for _ in range(CASES):
        gold, predicted = labels(r)
        assert metrics.accuracy(gold, predicted) == np.mean([list(g) == list(p) for g, p in zip(gold, predicted, strict=True)])
        assert metrics.micro_f1(gold, predicted) == pytest.approx(f1_of(gold.ravel(), predicted.ravel()), abs=1e-12)
        of_each = [f1_of(gold[:, column], predicted[:, column]) for column in range(gold.shape[1])]
        assert metrics.macro_f1(gold, predicted) == pytest.approx(sum(of_each) / len(of_each), abs=1e-12)


def test_numbers():
    r = np.random.default_rng(2)
    constant = 0
    for _ in range(CASES):
        gold, predicted = numbers(r)
        wide = predicted.astype(np.float64)
        constant += len(set(gold)) == 1 or len(set(wide)) == 1
        assert metrics.pearson(gold, predicted) == pytest.approx(correlation(gold, wide), abs=1e-9)
        assert metrics.spearman(gold, predicted) == pytest.approx(correlation(ranks(gold), ranks(wide)), abs=1e-9)
    assert constant > 100


@pytest.mark.filterwarnings("ignore")
def test_the_libraries_own_figures():
    """The same as scikit-learn's and SciPy's with their own defaults, except where SciPy gives NaN."""
    r = np.random.default_rng(3)
    for _ in range(60):
        pair = classes(r)
        assert metrics.accuracy(*pair) == sklearn_metrics.accuracy_score(*pair)
        assert metrics.matthews(*pair) == sklearn_metrics.matthews_corrcoef(*pair)
        assert metrics.macro_f1(*pair) == sklearn_metrics.f1_score(*pair, average="macro")
        assert np.array_equal(metrics.confusion(*pair, 6), sklearn_metrics.confusion_matrix(*pair, labels=range(6)))
        several = labels(r)
        if several[0].shape[1] > 1:
            assert metrics.macro_f1(*several) == sklearn_metrics.f1_score(*several, average="macro")
            assert metrics.micro_f1(*several) == sklearn_metrics.f1_score(*several, average="micro")
        gold, predicted = numbers(r)
        if len(gold) > 1:
            for ours, theirs in ((metrics.pearson, stats.pearsonr), (metrics.spearman, stats.spearmanr)):
                want = theirs(gold, predicted.astype(np.float64)).statistic
                assert ours(gold, predicted) == (0.0 if np.isnan(want) else want)


def test_what_divides_by_zero_is_0_and_warns_of_nothing():
    """A model that says the same of every row has no NaN in a table, and no warning for each evaluation."""
    zeros, ones, some = np.zeros(4, int), np.ones(4, int), np.array([0, 1, 1, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.f1(zeros, zeros) == metrics.f1(some, zeros) == metrics.f1(zeros, some) == 0.0
        assert metrics.f1(some, ones) == pytest.approx(2 / 3)
        assert metrics.matthews(some, ones) == metrics.matthews(ones, some) == metrics.matthews(ones, ones) == 0.0
        for correlate in (metrics.pearson, metrics.spearman):
            assert correlate(some, ones) == correlate(ones, some) == correlate(ones, ones) == correlate([2.5], [1.0]) == 0.0
            assert correlate(some, np.float32([0.1, 0.1, 0.1, 0.1])) == 0.0
        assert metrics.macro_f1(np.zeros((4, 3), bool), np.zeros((4, 3), bool)) == 0.0
        assert metrics.micro_f1(np.zeros((4, 3), bool), np.zeros((4, 3), bool)) == 0.0


def test_a_class_that_nobody_has_counts_for_no_row_but_an_empty_column_counts_0():
    assert metrics.macro_f1(np.array([0, 2]), np.array([0, 2])) == 1.0
    assert metrics.macro_f1(np.array([[1, 0], [0, 0]]), np.array([[1, 0], [0, 0]])) == 0.5
    assert metrics.macro_f1(np.array([[1], [0], [0]]), np.array([[1], [1], [0]])) == pytest.approx(2 / 3)  # one column is one label


def test_confusion_has_gold_classes_in_its_rows():
    want = [[1, 2, 0], [0, 0, 1], [0, 0, 0]]
    assert metrics.confusion([0, 0, 0, 1], [0, 1, 1, 2], 3).tolist() == want
    for gold, predicted in (([3], [0]), ([0], [3]), ([-1], [0]), ([0], [-1])):
        with pytest.raises(ValueError, match="not among 0 to 2"):
            metrics.confusion(gold, predicted, 3)


@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews", "pearson", "spearman", "macro_f1", "micro_f1"])
def test_what_cannot_be_scored_is_refused(name):
    for gold, predicted, what in (
        ([], [], "no row"),
        ([0, 1], [0], "shape"),
        ([[0, 1]], [0, 1], "shape"),
        ([0.0, 1.0], [np.nan, 1.0], "1 of 2 predictions"),
        ([np.inf, 1.0], [0.0, 1.0], "1 of 2 labels"),
    ):
        with pytest.raises(ValueError, match=what):
            metrics.METRICS[name](gold, predicted)


def test_a_task_names_its_metrics():
    gold, predicted = np.array([0, 1, 1]), np.array([0, 1, 0])
    assert metrics.measure(["accuracy", "f1"], gold, predicted) == {"accuracy": 2 / 3, "f1": pytest.approx(2 / 3)}
    got = metrics.measure(["chunks"], [["B-X", "O"]], [["B-X", "B-X"]])
    assert got == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "accuracy": 0.5}
    assert metrics.measure(["tags"], [["B-X", "O"]], [["B-X", "B-X"]]) == {"accuracy": 0.5}
    split = [["I-X", "I-Y"]]
    assert metrics.measure(["published_chunks"], split, split)["f1"] == 1.0
    assert (
        metrics.measure(["published_chunks"], split, [["I-Y", "I-Y"]])["f1"]
        == 1.0
        > metrics.measure(["chunks"], split, [["I-Y", "I-Y"]])["f1"]
    )
    assert metrics.measure(["squad1"], {"q": ["x"]}, {"q": "x"})["exact"] == 1.0
    assert metrics.measure(["squad2"], {"q": ["x"]}, {"q": "x"}, no_answer={"q": 0.2}, threshold=0.1)["exact"] == 0.0
    with pytest.raises(UserError, match="did you mean 'spearman'"):
        metrics.measure(["spearmann"], gold, predicted)


def test_the_table_imports_neither_jax_nor_scikit_learn():
    code = "import sys; from electra_jax.finetune import metrics; print([n for n in ('jax', 'sklearn', 'scipy') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"

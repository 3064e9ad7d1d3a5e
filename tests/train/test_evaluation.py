"""Held-out numbers against scikit-learn and sums by hand."""

import jax
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from electra_jax import rng
from electra_jax.train import evaluation
from electra_jax.types import Batch
from tests import tiny


@pytest.fixture(scope="module")
def setting():
    objective = tiny.objective(tiny.model(dropout=0.2))
    params = jax.jit(objective.init)(tiny.ROOT)
    tokens = np.random.default_rng(0).integers(5, 60, (10, 16)).astype(np.int32)
    tokens[:, 0], tokens[:, -1] = 2, 3
    return objective, jax.jit(evaluation.make_eval_step(objective)), params, tokens


def evaluated(setting, size) -> dict[str, float]:
    objective, eval_step, params, tokens = setting
    return evaluation.evaluate(objective, eval_step, params, batches(tokens, size))


def batches(tokens, size):
    for start in range(0, len(tokens), size):
        row = np.arange(start, start + size)
        t = tokens[row % len(tokens)]
        positions = np.broadcast_to(np.arange(16, dtype=np.int32), t.shape)
        yield Batch(t, np.ones_like(t), positions, np.zeros_like(t), row.astype(np.int32)), row < len(tokens)


def test_batches_and_fillers_do_not_change_the_numbers(setting):
    whole = evaluated(setting, 10)
    for size in (4, 3):
        cut = evaluated(setting, size)
        assert cut == pytest.approx(whole, rel=1e-5)
    assert evaluated(setting, 10) == whole  # constant keys, no dropout


def test_numbers_are_those_of_sklearn(setting):
    objective, eval_step, params, tokens = setting
    got = evaluated(setting, 10)
    batch, valid = next(batches(tokens, 10))
    _, terms, _ = jax.device_get(eval_step(params, batch, valid))
    logits, replaced = terms.outputs["logits"], terms.outputs["replaced"]
    could_be = (tokens != 2) & (tokens != 3)
    called = (logits > 0)[could_be]
    truth = replaced[could_be]
    assert got["eval/rtd_auc"] == pytest.approx(sklearn_metrics.roc_auc_score(truth, logits[could_be]))
    assert got["eval/rtd_accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(truth, called), rel=1e-6)
    assert got["eval/rtd_precision"] == pytest.approx(sklearn_metrics.precision_score(truth, called, zero_division=0), rel=1e-6)
    assert got["eval/rtd_recall"] == pytest.approx(sklearn_metrics.recall_score(truth, called), rel=1e-6)
    assert got["eval/replace_rate"] == pytest.approx(truth.mean(), rel=1e-6)
    assert got["eval/majority_accuracy"] == pytest.approx(1 - truth.mean(), rel=1e-6)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert got["eval/rtd_loss"] == pytest.approx(sklearn_metrics.log_loss(replaced.ravel(), probability.ravel()), rel=1e-5)
    assert got["eval/loss"] == pytest.approx(got["eval/mlm_loss"] + 50 * got["eval/rtd_loss"])


def test_held_out_mlm_counts_hidden_tokens_alone(setting):
    """The 15% of chosen tokens that stay visible can be copied; in training they count, held out they would flatter."""
    objective, _, _, tokens = setting
    batch, _ = next(batches(tokens, 10))
    step_rng = rng.StepRng(rng.root_key(0), np.int32(0))
    held, train = (jax.device_get(objective.plan(batch, step_rng, train)) for train in (False, True))
    of_held, of_train = held[0].generator, train[0].generator
    np.testing.assert_array_equal(of_held.mlm_weights, of_held.slots.masked)
    np.testing.assert_array_equal(of_train.mlm_weights, of_train.slots.weights)
    assert 0 < float(held[1]["mlm"]) < float(train[1]["mlm"])
    assert of_held.seeds is None and of_train.seeds is not None

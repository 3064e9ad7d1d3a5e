"""The AUC against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from electra_jax.objectives.auc import roc_auc


def test_auc_equals_sklearn_with_ties():
    r = np.random.default_rng(0)
    for _ in range(20):
        score, label = np.round(r.normal(size=500), r.integers(0, 4)), r.random(500) < r.uniform(0.02, 0.9)
        assert roc_auc(score, label) == pytest.approx(metrics.roc_auc_score(label, score), abs=1e-12)
    assert roc_auc(np.ones(4), np.ones(4, bool)) == 0.5

"""The unigram entropy against its definition."""

import numpy as np
import pytest

from electra_jax.data.rows.counts import unigram_entropy


def test_unigram_entropy_is_cross_entropy():
    train, held = np.array([6, 3, 0, 1]), np.array([1, 2, 1, 0])
    p = np.array([7, 4, 1, 2]) / 14
    assert unigram_entropy(train, held) == pytest.approx(-(np.log(p[0]) + 2 * np.log(p[1]) + np.log(p[2])) / 4)

"""Random bits: independent of how a batch is cut, uniform, and recomputed exactly by dropout's backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from electra_jax import rng


def seeds(rows, step=0):
    return rng.StepRng(rng.root_key(0), jnp.int32(step)).seeds("dropout", jnp.arange(rows))


def test_row_keys_are_the_stated_folds():
    import zlib

    root = rng.root_key(3)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(root, zlib.crc32(b"samples")), 11), 5)
    got = rng.StepRng(root, jnp.int32(11)).uniform("samples", jnp.array([4, 5]), (3,))[1]
    np.testing.assert_array_equal(got, jax.random.uniform(key, (3,)))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_rate_and_scale_and_backward(rate):
    x = jnp.ones((64 * 32, 48))
    y, pullback = jax.vjp(lambda x: rng.dropout(x, seeds(64), rate), x)
    kept = np.asarray(y) != 0
    assert stats.binomtest(int(kept.sum()), kept.size, 1 - rate).pvalue > 1e-4
    np.testing.assert_allclose(np.asarray(y)[kept], 1 / (1 - rate), rtol=1e-6)
    np.testing.assert_array_equal(pullback(jnp.ones_like(x))[0], y)  # the same mask, computed anew


def test_bits_of_a_row_do_not_know_the_batch():
    whole = rng.keep_mask(seeds(8), (5, 7), 0.3)
    np.testing.assert_array_equal(whole[4:], rng.keep_mask(seeds(8)[4:], (5, 7), 0.3))


def test_masks_are_independent_over_rows_sites_steps_and_places():
    n = 4096
    masks = [
        np.asarray(rng.keep_mask(rng.site_seeds(seeds(16, step), layer, place), (n,), 0.5))
        for step in (0, 1) for layer in (0, 1, 2) for place in (0, 1)
    ]
    bits = np.concatenate(masks).astype(float)  # [12 x 16, n]
    correlation = np.corrcoef(bits)
    off = correlation[~np.eye(len(bits), dtype=bool)]
    assert np.abs(off).max() < 6 / n**0.5
    assert off.std() == pytest.approx(1 / n**0.5, rel=0.05)
    for lag in (1, 2, 7, 64, 128):
        pairs = np.mean((bits[:, lag:] - 0.5) * (bits[:, :-lag] - 0.5)) * 4
        assert abs(pairs) < 5 / bits[:, lag:].size ** 0.5


def test_layer_may_be_traced():
    np.testing.assert_array_equal(jax.jit(rng.site_seeds, static_argnums=2)(seeds(4), jnp.uint32(3), 2), rng.site_seeds(seeds(4), 3, 2))

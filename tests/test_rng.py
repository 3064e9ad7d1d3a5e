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


def test_each_word_of_a_seed_counts():
    """64 random bits a row: with 32, two of 100,000 rows would share a mask."""
    a, b, c = 0x9E3779B9, 0xABCDEF01, 0x12345678
    for pair in ([[a, b], [a, c]], [[b, a], [c, a]]):
        one, other = np.asarray(rng.keep_mask(jnp.asarray(pair, jnp.uint32), (10_000,), 0.5))
        assert abs((one == other).mean() - 0.5) < 0.02


def test_masks_are_independent_over_rows_sites_steps_and_places():
    n = 4096
    masks = [
        np.asarray(rng.keep_mask(rng.site_seeds(seeds(16, step), layer, place), (n,), 0.5))
        for step in (0, 1)
        for layer in (0, 1, 2)
        for place in (0, 1)
    ]
    bits = np.concatenate(masks).astype(float)  # [12 x 16, n]
    correlation = np.corrcoef(bits)
    off = correlation[~np.eye(len(bits), dtype=bool)]
    assert np.abs(off).max() < 6 / n**0.5
    assert off.std() == pytest.approx(1 / n**0.5, rel=0.05)
    for lag in (1, 2, 7, 64, 128):
        pairs = np.mean((bits[:, lag:] - 0.5) * (bits[:, :-lag] - 0.5)) * 4
        assert abs(pairs) < 5 / bits[:, lag:].size ** 0.5


def test_bits_are_uniform():
    """All 32 of them: masks at rising rates are nested, and each step of the rate drops its share of the elements."""
    rates = np.arange(0, 65) / 64
    dropped = [int((~np.asarray(rng.keep_mask(seeds(64), (128, 64), rate))).sum()) for rate in rates[1:-1]]
    counts = np.diff([0, *dropped, 64 * 128 * 64])
    assert stats.chisquare(counts).pvalue > 1e-4
    fine = [int((~np.asarray(rng.keep_mask(seeds(512), (128, 64), rate))).sum()) for rate in (2.0**-12, 2.0**-16)]  # the low bits too
    for count, rate in zip(fine, (2.0**-12, 2.0**-16), strict=True):
        assert stats.binomtest(count, 512 * 128 * 64, rate).pvalue > 1e-4


def test_no_place_is_kept_more_often_than_another():
    """Counts by position, by hidden unit, by row, by layer and by step, each against one share for all."""
    rate, kept = 0.1, []
    for step in range(6):
        of_step = [rng.keep_mask(rng.site_seeds(seeds(32, step), layer, 1), (64, 48), rate) for layer in range(1, 9)]
        kept.append(np.asarray(of_step))
    kept_TxNxBxLxH = np.asarray(kept)
    for axis in range(5):
        counts = kept_TxNxBxLxH.sum(axis=tuple(other for other in range(5) if other != axis))
        each = kept_TxNxBxLxH.size / len(counts)
        chi = float(np.sum((counts - each * (1 - rate)) ** 2) / (each * rate * (1 - rate)))
        assert 1e-4 < stats.chi2.cdf(chi, len(counts)) < 1 - 1e-4, axis  # nor more evenly than chance would


def test_neighbours_along_every_axis_are_independent():
    """Of two elements that differ in one coordinate alone, by 1, 2, 4 ...: both dropped as often as chance would."""
    rate = 0.3
    masks = [[rng.keep_mask(rng.site_seeds(seeds(16, t), n, 2), (32, 32), rate) for n in range(1, 9)] for t in range(8)]
    dropped = 1.0 - np.asarray(masks, np.float64)
    for axis in range(5):
        for lag in (1, 2, 4):
            size = dropped.shape[axis]
            a, b = np.take(dropped, range(lag, size), axis), np.take(dropped, range(size - lag), axis)
            assert stats.binomtest(int((a * b).sum()), a.size, rate**2).pvalue > 1e-4, (axis, lag)


def test_layer_may_be_traced():
    np.testing.assert_array_equal(jax.jit(rng.site_seeds, static_argnums=2)(seeds(4), jnp.uint32(3), 2), rng.site_seeds(seeds(4), 3, 2))


def test_dropout_of_bfloat16_scales_by_all_of_the_rate():
    """1 / 0.9 is 1.109 in bfloat16: every sum over what is kept would be 0.16% too small."""
    x = jax.random.normal(jax.random.key(1), (64 * 128, 64)).astype(jnp.bfloat16)
    y = rng.dropout(x, seeds(64), 0.1)
    kept = y != 0
    assert y.dtype == jnp.bfloat16
    sizes = [float(jnp.sum(jnp.abs(jnp.where(kept, z, 0)).astype(jnp.float32))) for z in (y, x)]
    assert abs(sizes[0] / sizes[1] * 0.9 - 1) < 2e-4

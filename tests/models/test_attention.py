"""Fused attention against the plain form, on packed rows, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax.cli import UserError
from electra_jax.models import attention


def packed(B=2, L=256, H=2, D=64, seed=0):
    """Rows of several documents, the last part padding; queries, keys, values and an upstream gradient."""
    rng = np.random.default_rng(seed)
    segments = np.zeros((B, L), np.int32)
    for b in range(B):
        ends = np.sort(rng.choice(np.arange(1, L - 20), 4, replace=False))
        for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), start=1):
            segments[b, start:end] = number
    arrays = [jnp.asarray(rng.normal(size=(B, L, H, D)), jnp.float32) for _ in range(4)]
    return arrays, jnp.asarray(segments)


@pytest.mark.parametrize("shape", [dict(L=256, D=64), dict(L=384, D=64), dict(L=128, D=32, H=4)])
def test_splash_equals_the_plain_form_forward_and_backward(shape):
    (q, k, v, g), segments = packed(**shape)
    real = (segments > 0)[:, :, None, None]  # what padding sees of itself is nobody's business

    def loss(function):
        return lambda q, k, v: jnp.sum(jnp.where(real, function(q, k, v) * g, 0.0))

    def plain(q, k, v):
        return attention.attend(q, k, v, segments, None, 0.0)

    def fused(q, k, v):
        return attention.splash(q, k, v, segments, interpret=True)

    np.testing.assert_allclose(jnp.where(real, fused(q, k, v), 0), jnp.where(real, plain(q, k, v), 0), atol=1e-5, rtol=0)
    wanted, found = (jax.grad(loss(function), (0, 1, 2))(q, k, v) for function in (plain, fused))
    for name, a, b in zip("qkv", wanted, found, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5, rtol=0, err_msg=name)
        assert np.abs(a).max() > 0.1


def test_splash_never_sees_another_segment():
    (q, k, v, _), segments = packed(B=1)
    first = segments == 1
    changed = jnp.where(first[:, :, None, None], v, v + 100.0)
    before, after = (attention.splash(q, k, x, segments, interpret=True) for x in (v, changed))
    np.testing.assert_array_equal(np.asarray(before)[np.asarray(first)], np.asarray(after)[np.asarray(first)])


@pytest.mark.parametrize(
    "asked, platform, length, head, dtype, dropout, path",
    [
        ("auto", "tpu", 512, 64, "bfloat16", 0.0, "splash"),
        ("auto", "tpu", 512, 64, "bfloat16", 0.1, "xla"),
        ("auto", "tpu", 128, 64, "bfloat16", 0.0, "xla"),
        ("auto", "tpu", 500, 64, "bfloat16", 0.0, "xla"),
        ("auto", "gpu", 512, 64, "bfloat16", 0.0, "cudnn"),
        ("auto", "gpu", 512, 64, "float32", 0.0, "xla"),
        ("auto", "cpu", 512, 64, "float32", 0.0, "xla"),
        ("xla", "tpu", 512, 64, "bfloat16", 0.0, "xla"),
        ("splash", "tpu", 128, 64, "bfloat16", 0.0, "splash"),
    ],
)
def test_auto_takes_what_can_run(asked, platform, length, head, dtype, dropout, path):
    assert attention.choose(asked, platform, length, head, dtype, dropout) == path


@pytest.mark.parametrize(
    "asked, platform, length, head, dtype, dropout, why",
    [
        ("splash", "cpu", 512, 64, "float32", 0.0, "runs on a TPU"),
        ("splash", "tpu", 512, 64, "bfloat16", 0.1, "attention_dropout=0"),
        ("splash", "tpu", 100, 64, "bfloat16", 0.0, "multiple of 128"),
        ("cudnn", "gpu", 512, 64, "float32", 0.0, "bfloat16"),
        ("cudnn", "gpu", 512, 12, "bfloat16", 0.0, "12 wide"),
        ("cudnn", "tpu", 512, 64, "bfloat16", 0.0, "GPU"),
    ],
)
def test_what_cannot_run_says_why(asked, platform, length, head, dtype, dropout, why):
    with pytest.raises(UserError, match=why):
        attention.choose(asked, platform, length, head, dtype, dropout)

"""Fused attention against the plain form, on packed rows, forward and backward."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax.cli import UserError
from electra_jax.models.attention import choice
from electra_jax.models.attention import rows as row_path
from electra_jax.models.attention.projection import rotate
from electra_jax.models.attention.splash import splash
from electra_jax.models.config import PRESETS
from electra_jax.models.ops.attention import attention as plain_attention


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


BIASES = [0.1 * np.random.default_rng(1).normal(size=2048).astype(np.float32) for _ in range(3)]


def rows(q, k, v, segments, interpret):
    """`rows.attend` in the form of the others: it adds the biases that were taken away."""
    B, L, H, D = q.shape
    biases = [jnp.asarray(bias[: H * D]) for bias in BIASES]
    products = [x.reshape(B, L, H * D) - bias[None, None] for x, bias in zip((q, k, v), biases, strict=True)]
    return row_path.attend(products, biases, segments, D, interpret=interpret).reshape(B, L, H, D)


@pytest.mark.parametrize(
    "kernel, shape",
    [
        (rows, dict(L=256, D=64)),
        (rows, dict(L=384, D=64, H=4)),
        (rows, dict(L=128, D=32, H=8)),
        (rows, dict(L=128, D=128)),
        (rows, dict(L=128, H=1)),
        (rows, dict(L=1024, B=1)),
        (splash, dict(L=256, D=64)),
        (splash, dict(L=384, D=64)),
        (splash, dict(L=128, D=32, H=4)),
    ],
)
def test_a_kernel_equals_the_plain_form_forward_and_backward(kernel, shape):
    (q, k, v, g), segments = packed(**shape)
    real = (segments > 0)[:, :, None, None]  # what padding sees of itself is nobody's business

    def loss(function):
        return lambda q, k, v: jnp.sum(jnp.where(real, function(q, k, v) * g, 0.0))

    def plain(q, k, v):
        return plain_attention(q, k, v, segments, None, 0.0)

    def fused(q, k, v):
        return kernel(q, k, v, segments, interpret=True)

    np.testing.assert_allclose(jnp.where(real, fused(q, k, v), 0), jnp.where(real, plain(q, k, v), 0), atol=1e-5, rtol=0)
    wanted, found = (jax.grad(loss(function), (0, 1, 2))(q, k, v) for function in (plain, fused))
    for name, a, b in zip("qkv", wanted, found, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5, rtol=0, err_msg=name)
        assert np.abs(a).max() > 0.1


def test_gradients_of_biases_are_sums_over_tokens():
    (q, k, v, g), segments = packed()
    B, L, H, D = q.shape
    products, biases = [x.reshape(B, L, H * D) for x in (q, k, v)], [jnp.asarray(bias[: H * D]) for bias in BIASES]

    def loss(products, biases):
        return jnp.sum(row_path.attend(products, biases, segments, D, interpret=True) * g.reshape(B, L, H * D))

    wide, narrow = jax.grad(loss, (0, 1))(products, biases)
    for dx, dbias in zip(wide, narrow, strict=True):
        np.testing.assert_allclose(dbias, dx.sum((0, 1)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kernel", [rows, splash])
def test_a_kernel_never_sees_another_segment(kernel):
    (q, k, v, _), segments = packed(B=1)
    first = segments == 1
    changed = jnp.where(first[:, :, None, None], v, v + 100.0)
    before, after = (kernel(q, k, x, segments, interpret=True) for x in (v, changed))
    np.testing.assert_array_equal(np.asarray(before)[np.asarray(first)], np.asarray(after)[np.asarray(first)])


def networks(*shapes, dtype="bfloat16", dropout=0.0):
    """A network for each (heads, head size)."""
    base = PRESETS["base"].discriminator
    return [
        dataclasses.replace(base, hidden_size=heads * size, num_heads=heads, dtype=dtype, attention_dropout=dropout)
        for heads, size in shapes
    ]


BASE = ((12, 64), (4, 64))


@pytest.mark.parametrize(
    "asked, platform, length, of, path",
    [
        ("auto", "tpu", 512, networks(*BASE), "rows"),
        ("auto", "tpu", 2048, networks(*BASE), "splash"),
        ("auto", "tpu", 512, networks((12, 64), (3, 64)), "splash"),
        ("auto", "tpu", 512, networks(*BASE, dropout=0.1), "xla"),
        ("auto", "tpu", 128, networks(*BASE), "xla"),
        ("auto", "tpu", 500, networks(*BASE), "xla"),
        ("auto", "gpu", 512, networks(*BASE), "cudnn"),
        ("auto", "gpu", 512, networks(*BASE, dtype="float32"), "xla"),
        ("auto", "cpu", 512, networks(*BASE, dtype="float32"), "xla"),
        ("xla", "tpu", 512, networks(*BASE), "xla"),
        ("splash", "tpu", 128, networks(*BASE), "splash"),
    ],
)
def test_auto_takes_what_can_run(asked, platform, length, of, path):
    assert choice.choose(asked, platform, length, of) == path


@pytest.mark.parametrize(
    "asked, platform, length, of, why",
    [
        ("rows", "cpu", 512, networks(*BASE), "runs on a TPU"),
        ("rows", "tpu", 2048, networks(*BASE), "model.attention=splash"),
        ("splash", "cpu", 512, networks(*BASE, dtype="float32"), "runs on a TPU"),
        ("splash", "tpu", 512, networks(*BASE, dropout=0.1), "attention_dropout=0"),
        ("splash", "tpu", 100, networks(*BASE), "multiple of 128"),
        ("cudnn", "gpu", 512, networks(*BASE, dtype="float32"), "bfloat16"),
        ("cudnn", "gpu", 512, networks((12, 12)), "12 wide"),
        ("cudnn", "tpu", 512, networks(*BASE), "GPU"),
    ],
)
def test_what_cannot_run_says_why(asked, platform, length, of, why):
    with pytest.raises(UserError, match=why):
        choice.choose(asked, platform, length, of)


@pytest.mark.parametrize("kernel", [rows, splash, "xla"])
def test_scores_of_bfloat16_are_float32(kernel):
    """Scores near 60, which bfloat16 would round to a quarter: every weight would be off by up to 13%."""
    (q, k, v, _), segments = packed(L=128, B=1)
    q, k, v = (x.astype(jnp.bfloat16) for x in (20 * q, k, v))
    exact = plain_attention(*(x.astype(jnp.float32) for x in (q, k, v)), segments, None, 0.0)
    if kernel == "xla":
        found = plain_attention(q, k, v, segments, None, 0.0)
    else:
        found = kernel(q, k, v, segments, interpret=True)
    real = np.asarray(segments) > 0
    np.testing.assert_allclose(np.asarray(found, np.float32)[real], np.asarray(exact)[real], atol=0.02, rtol=0.02)


def test_rotary_scores_depend_on_distance_alone():
    r = np.random.default_rng(0)
    q, k = (np.tile(r.normal(size=(1, 1, 2, 8)).astype(np.float32), (1, 12, 1, 1)) for _ in range(2))
    place = np.arange(12, dtype=np.int32)[None]
    scores = np.einsum("blhd,bmhd->hlm", rotate(q, place), rotate(k, place))
    for distance in range(-11, 12):
        diagonal = np.stack([np.diagonal(s, distance) for s in scores])
        np.testing.assert_allclose(diagonal, np.broadcast_to(diagonal[:, :1], diagonal.shape), atol=1e-5)
    assert np.ptp(scores[0, 0]) > 0.1


@pytest.mark.parametrize(
    ("path", "platform", "length", "multiple"),
    [("rows", "tpu", 512, 128), ("splash", "tpu", 256, 128), ("cudnn", "gpu", 512, 8), ("xla", "tpu", 500, 8), ("xla", "cpu", 5, 8)],
)
def test_shorter_rows_that_the_path_runs_too(path, platform, length, multiple):
    of = networks(*BASE)
    assert choice.row_multiple(path, platform, length, of) == multiple
    for shorter in range(multiple, length + 1, multiple):
        assert choice.choose(path, platform, shorter, of) == path

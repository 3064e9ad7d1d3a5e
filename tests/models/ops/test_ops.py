"""Each backward pass written by hand against what jax derives from the plain form, and what it keeps for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from electra_jax import rng
from electra_jax.models.ops import layer_norm, vocabulary
from electra_jax.models.ops.attention import attention
from electra_jax.models.ops.dense import product, wide_product
from electra_jax.models.ops.gelu import gelu

SEEDS = jnp.asarray([[1, 2], [3, 4]], jnp.uint32)
SEGMENTS = jnp.asarray([[1, 1, 1, 2, 2, 2, 2, 3, 0, 0], [1] * 10], jnp.int32)
DIRECTION = jnp.asarray([1, -1], jnp.int32)


def normal(number, *shape):
    return np.random.default_rng(number).normal(size=shape)


def plain_attention(q, k, v, segments, seeds, rate, direction=None):
    scores = jnp.einsum("blhd,bmhd->bhlm", q, k) * q.shape[-1] ** -0.5
    same = segments[:, None, :, None] == segments[:, None, None, :]
    if direction is not None:
        earlier = np.tril(np.ones(same.shape[-2:], bool))
        same &= jnp.stack([earlier if d > 0 else earlier.T for d in direction])[:, None]
    weights = jax.nn.softmax(jnp.where(same, scores, -jnp.inf), axis=-1)
    if seeds is not None:
        weights = jnp.where(rng.keep_mask(seeds, weights.shape[1:], rate), weights / (1 - rate), 0.0)
    return jnp.einsum("bhlm,bmhd->blhd", weights, v)


def plain_layer_norm(x, scale, bias, epsilon):
    return jax.nn.standardize(x, axis=-1, epsilon=epsilon) * scale[None] + bias[None]


def in_blocks(x, word, bias, targets):
    """Of four tokens at a time, the last block of one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "BLOCK_LOGITS", 4 * len(word))
        return vocabulary.nll_in_blocks(x, word, bias, targets)[0]


def plain_nll(x, word, bias, targets):
    return -jnp.take_along_axis(jax.nn.log_softmax(x @ word.T + bias[None], axis=1), targets[:, None], axis=1)[:, 0]


QKV = [normal(n, 2, 10, 3, 4) for n in range(3)]
NORM = [normal(3, 7, 6) * 3 + 1, normal(4, 6), normal(5, 6)]
VOCABULARY = [normal(6, 9, 5), normal(7, 300, 5), normal(8, 300)]
TARGETS = jnp.asarray([0, 299, 5, 5, 5, 17, 18, 19, 20])

CASES = {
    "attention": (lambda *qkv: attention(*qkv, SEGMENTS, None, 0.3), lambda *qkv: plain_attention(*qkv, SEGMENTS, None, 0.3), QKV),
    "attention, dropout": (
        lambda *qkv: attention(*qkv, SEGMENTS, SEEDS, 0.3),
        lambda *qkv: plain_attention(*qkv, SEGMENTS, SEEDS, 0.3),
        QKV,
    ),
    "layer_norm": (lambda *x: layer_norm.layer_norm(*x, 1e-3), lambda *x: plain_layer_norm(*x, 1e-3), NORM),
    "gelu": (gelu, lambda x: x * 0.5 * (1 + jax.lax.erf(x / np.sqrt(2))), [np.linspace(-7, 7, 99)]),
    "product, narrowing": (product, lambda x, kernel: x @ kernel, [normal(9, 8, 12), normal(10, 12, 3)]),
    "product, widening": (product, lambda x, kernel: x @ kernel, [normal(9, 8, 3), normal(10, 3, 12)]),
    "attention, directed": (
        lambda *qkv: attention(*qkv, SEGMENTS, None, 0.3, DIRECTION),
        lambda *qkv: plain_attention(*qkv, SEGMENTS, None, 0.3, DIRECTION),
        QKV,
    ),
    "vocabulary_nll": (lambda *x: vocabulary.nll(*x, TARGETS)[0], lambda *x: plain_nll(*x, TARGETS), VOCABULARY),
    "vocabulary_nll, in blocks": (lambda *x: in_blocks(*x, TARGETS), lambda *x: plain_nll(*x, TARGETS), VOCABULARY),
    "vocabulary_nll, log of the total": (
        lambda *x: vocabulary.nll(*x, TARGETS)[3],
        lambda x, word, bias: jax.nn.logsumexp(x @ word.T + bias[None], axis=1),
        VOCABULARY,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_plain_form(name):
    function, plain, operands = CASES[name]
    with jax.enable_x64(True):
        operands = [jnp.asarray(x, jnp.float64) for x in operands]
        wanted, pull_plain = jax.vjp(plain, *operands)
        found, pull = jax.vjp(jax.jit(function), *operands)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)
        upstream = jnp.asarray(normal(11, *wanted.shape))
        for number, (a, b) in enumerate(zip(pull_plain(upstream), pull(upstream), strict=True)):
            assert b.dtype == jnp.float64
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-11, err_msg=f"operand {number}")
            assert np.abs(a).max() > 0.1


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_stays_bfloat16_with_sums_in_float32(name):
    function, _, operands = CASES[name]
    exact = [jnp.asarray(x, jnp.bfloat16).astype(jnp.float32) for x in operands]
    small = [x.astype(jnp.bfloat16) for x in exact]
    if name == "layer_norm":
        small[1:] = exact[1:]  # its scale and bias are parameters, and stay wide
    if name.startswith("vocabulary_nll"):
        small[2] = exact[2]
    (wanted, pull_wanted), (found, pull) = jax.vjp(function, *exact), jax.vjp(function, *small)
    upstream = jnp.asarray(normal(11, *wanted.shape), jnp.bfloat16)
    np.testing.assert_allclose(found.astype(jnp.float32), wanted, atol=0.03 * np.abs(wanted).max())
    for x, a, b in zip(small, pull_wanted(upstream.astype(wanted.dtype)), pull(upstream.astype(found.dtype)), strict=True):
        assert b.dtype == x.dtype
        np.testing.assert_allclose(b.astype(jnp.float32), a, atol=0.03 * np.abs(a).max())


def test_gelu_is_exact():
    x = np.linspace(-6, 6, 1001)
    exact = x * stats.norm.cdf(x)
    np.testing.assert_allclose(gelu(jnp.asarray(x, jnp.float32)), exact, atol=1e-6)
    assert np.abs(np.asarray(jax.nn.gelu(x, approximate=True)) - exact).max() > 1e-4  # the test can tell


def test_vocabulary_probabilities_and_accuracy():
    x, word, bias = (jnp.asarray(x, jnp.float32) for x in VOCABULARY)
    logits = np.asarray(x @ word.T + bias[None])
    targets = jnp.asarray(np.where(np.arange(9) % 2, logits.argmax(1), 3))
    _, mass_SxV, right_S, _ = vocabulary.nll(x, word, bias, targets)
    np.testing.assert_allclose(mass_SxV / mass_SxV.sum(1, keepdims=True), special.softmax(logits, axis=1), atol=1e-6)
    np.testing.assert_array_equal(right_S, logits.argmax(1) == np.asarray(targets))


def test_no_gradient_flows_through_the_probabilities():
    x, word, bias = (jnp.asarray(x, jnp.float32) for x in VOCABULARY)
    gradient = jax.grad(lambda x: jnp.sum(vocabulary.nll(x, word, bias, TARGETS)[1] ** 2))(x)
    np.testing.assert_array_equal(gradient, 0)


def test_what_is_kept_for_the_backward_pass():
    """Attention: one [B, H, L, L]; GELU: its input alone; LayerNorm: x and two numbers a row; the vocabulary: one [S, V]."""

    def kept(function, *operands):
        _, pull = jax.vjp(function, *(jnp.asarray(x, jnp.float32) for x in operands))
        return [x.shape for x in jax.tree.leaves(pull)]

    of_attention = kept(lambda *qkv: attention(*qkv, SEGMENTS, SEEDS, 0.3), *QKV)
    assert of_attention.count((2, 3, 10, 10)) == 1
    assert kept(gelu, normal(0, 5, 4)) == [(5, 4)]
    assert sorted(kept(lambda *x: layer_norm.layer_norm(*x, 1e-3), *NORM)) == [(6,), (7,), (7,), (7, 6)]
    assert kept(lambda *x: vocabulary.nll(*x, TARGETS)[0], *VOCABULARY).count((9, 300)) == 1


def test_what_the_compiled_program_keeps():
    """Of each GELU its input, and its output for the product that follows: no third after the compiler has merged the two passes."""

    def loss(weights_LxCxF, x_NxC):
        for weights_CxF in weights_LxCxF:
            x_NxC = gelu(x_NxC @ weights_CxF) @ weights_CxF.T
        return jnp.sum(x_NxC)

    def temporaries(layers):
        shapes = jax.ShapeDtypeStruct((layers, 8, 256), jnp.float32), jax.ShapeDtypeStruct((512, 8), jnp.float32)
        return jax.jit(jax.grad(loss)).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert (temporaries(8) - temporaries(4)) / 4 < 2.5 * 512 * 256 * 4


@pytest.mark.parametrize("features", [3, 20])
def test_the_gradient_of_a_float32_kernel_is_not_rounded_to_bfloat16(features):
    x, upstream = (jnp.asarray(normal(9, 64, size), jnp.bfloat16) for size in (12, features))
    kernel = jnp.asarray(normal(10, 12, features), jnp.float32)
    found, pull = jax.vjp(jax.jit(product), x, kernel)
    assert found.dtype == jnp.bfloat16
    grad_x, grad_kernel = pull(upstream)
    assert (grad_x.dtype, grad_kernel.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(grad_kernel, x.astype(jnp.float32).T @ upstream.astype(jnp.float32), rtol=0, atol=1e-5)


def test_what_a_tpu_computes():
    """On any platform."""
    x = jnp.asarray(normal(2, 50, 40) + 3 * normal(3, 50, 1), jnp.float32)
    for found, wanted in zip(layer_norm.moments_in_one_pass(x), layer_norm.moments(x), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    logits, targets = jnp.asarray(normal(1, 9, 300), jnp.float32), TARGETS
    np.testing.assert_array_equal(vocabulary.pick_by_sum(logits, targets), vocabulary.pick(logits, targets))


def test_logits_of_bfloat16_and_their_gradients_are_not_rounded():
    """Against float64 on the same bfloat16 operands; rounded to bfloat16 they would be off by up to 4e-3 of themselves."""
    x = jnp.asarray(normal(21, 64, 48), jnp.bfloat16)
    kernel, upstream = (np.float32(normal(n, *shape)) for n, shape in ((22, (48, 2)), (23, (64, 2))))
    y, pullback = jax.vjp(wide_product, x, jnp.asarray(kernel))
    grad_x, grad_kernel = pullback(jnp.asarray(upstream))
    assert (y.dtype, grad_x.dtype, grad_kernel.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    exact, narrow = np.asarray(x, np.float64), np.asarray(jnp.asarray(kernel, jnp.bfloat16), np.float64)
    np.testing.assert_allclose(y, exact @ narrow, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grad_kernel, exact.T @ upstream.astype(np.float64), rtol=1e-5, atol=1e-4)
    assert jnp.any(y != y.astype(jnp.bfloat16).astype(jnp.float32))


def test_the_gradient_of_float32_words_is_not_rounded_to_bfloat16():
    x, word, bias = (jnp.asarray(a, kind) for a, kind in zip(VOCABULARY, (jnp.bfloat16, jnp.float32, jnp.float32), strict=True))
    upstream = jnp.asarray(normal(24, 9), jnp.float32)
    found = jax.vjp(lambda *a: vocabulary.nll(*a, TARGETS)[0], x, word, bias)[1](upstream)[1]
    x_wide, word_wide = x.astype(jnp.float32), word.astype(jnp.bfloat16).astype(jnp.float32)
    wanted = jax.vjp(lambda *a: plain_nll(*a, TARGETS), x_wide, word_wide, bias)[1](upstream)[1]
    assert found.dtype == jnp.float32
    # The rows of targets, whose largest part is x itself, and which bfloat16 would round to 3 digits.
    rows = np.unique(TARGETS)
    np.testing.assert_allclose(found[rows], wanted[rows], rtol=2e-3, atol=2e-3)
    assert jnp.any(found != found.astype(jnp.bfloat16).astype(jnp.float32))

    def own_loss(x, word, bias):  # of whoever takes the logits themselves
        return -jnp.take_along_axis(jax.nn.log_softmax(vocabulary.logits(x, word, bias)), TARGETS[:, None], axis=1)[:, 0]

    of_logits = jax.vjp(own_loss, x, word, bias)[1](upstream)[1]
    np.testing.assert_allclose(of_logits, wanted, rtol=2e-3, atol=2e-3)
    assert jnp.any(of_logits != of_logits.astype(jnp.bfloat16).astype(jnp.float32))

"""Functions whose backward pass is written by hand, because the derived one does more work. Nothing else of a model is here.

Each is the same function of its inputs as the plain form that its docstring names, and its gradient too, to rounding
(tests/models/test_backward.py). Gains are of forward and backward at `small`'s sizes, 32 rows of 128, in CPU-milliseconds on two
cores with AVX-512, against the plain form. Where a platform needs another formulation, `jax.lax.platform_dependent` chooses.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import rng
from electra_jax.types import Array

# The published code adds -10000 to masked scores (google-research/electra model/modeling.py). exp of either is exactly 0 beside a real
# score above -9,900, and a finite value keeps a row that is all padding free of NaN.
MASKED = -1e4


def wide_type(x: Array):
    """The type of sums: at least float32."""
    return jnp.promote_types(x.dtype, jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def attention(q_BxLxHxD: Array, k_BxLxHxD: Array, v_BxLxHxD: Array, segments_BxL: Array, seeds_Bx2: Array | None, rate: float) -> Array:
    """dropout(softmax(q k^T / sqrt(D), within segments)) v, [B, L, H, D]. Scores and weights are at least float32.

    Keeps the weights before dropout alone and drops them again (on a CPU XLA merges that with the first time, and keeps both:
    100 MiB of `small`), and takes the softmax's row sums over D and not over L: sum_m of weight x its gradient is the output times its own
    gradient (arXiv 2205.14135, B.4), with dropout as well. 44 ms a layer, its projections included, against 49.
    """
    return _attention_fwd(q_BxLxHxD, k_BxLxHxD, v_BxLxHxD, segments_BxL, seeds_Bx2, rate)[0]


def _drop(x, seeds_Bx2, rate):
    return x if seeds_Bx2 is None or not rate else rng.dropout(x, seeds_Bx2, rate)


def _attention_fwd(q_BxLxHxD, k_BxLxHxD, v_BxLxHxD, segments_BxL, seeds_Bx2, rate):
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BxLxHxD, k_BxLxHxD, v_BxLxHxD))
    wide = wide_type(q)
    scores_BxHxLxM = jnp.einsum("bhld,bhmd->bhlm", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    same_Bx1xLxM = segments_BxL[:, None, :, None] == segments_BxL[:, None, None, :]
    scores_BxHxLxM = jnp.where(same_Bx1xLxM, scores_BxHxLxM, jnp.asarray(MASKED, wide))
    weights_BxHxLxM = jnp.exp(scores_BxHxLxM - jnp.max(scores_BxHxLxM, axis=-1, keepdims=True))
    weights_BxHxLxM /= jnp.sum(weights_BxHxLxM, axis=-1, keepdims=True)
    out = jnp.einsum("bhlm,bhmd->bhld", _drop(weights_BxHxLxM, seeds_Bx2, rate).astype(v.dtype), v)
    return jnp.swapaxes(out, 1, 2), (q, k, v, weights_BxHxLxM, out, seeds_Bx2)


def _attention_bwd(rate, residuals, grad_BxLxHxD):
    # For TPUs: without the barrier XLA keeps more for this pass (`small` on a v6e: 0.98 GiB, and 0.86 with it).
    q, k, v, weights_BxHxLxM, out, seeds_Bx2 = jax.lax.optimization_barrier(residuals)
    grad, wide = jnp.swapaxes(grad_BxLxHxD, 1, 2), weights_BxHxLxM.dtype
    dropped = _drop(weights_BxHxLxM, seeds_Bx2, rate).astype(v.dtype)
    grad_weights = _drop(jnp.einsum("bhld,bhmd->bhlm", grad, v, preferred_element_type=wide), seeds_Bx2, rate)
    sums_BxHxLx1 = jnp.sum(grad.astype(wide) * out.astype(wide), axis=-1, keepdims=True)
    # A weight outside of its segment is 0, and its score's gradient with it.
    grad_scores = (weights_BxHxLxM * (grad_weights - sums_BxHxLx1) * q.shape[-1] ** -0.5).astype(q.dtype)
    grads = (
        jnp.einsum("bhlm,bhmd->bhld", grad_scores, k),
        jnp.einsum("bhlm,bhld->bhmd", grad_scores, q),
        jnp.einsum("bhlm,bhld->bhmd", dropped, grad),
    )
    return *(jnp.swapaxes(x, 1, 2) for x in grads), None, None


attention.defvjp(_attention_fwd, _attention_bwd)


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """x P(X <= x), X standard normal: the exact form, as published. Keeps x alone; derived, erf(x / sqrt 2) would stay as well: 200 MiB.

    Through erf: `jax.nn.gelu(approximate=False)` goes through erfc and costs twice.
    """
    return x * _normal_cdf(x)


def _normal_cdf(x):
    return 0.5 * (1.0 + jax.lax.erf(x * np.asarray(0.5**0.5, x.dtype)))


def _gelu_bwd(x, grad):
    x = jax.lax.optimization_barrier(x)  # or XLA keeps erf for the backward pass after all
    density = jnp.exp(-0.5 * x * x) * np.asarray((2 * np.pi) ** -0.5, x.dtype)
    return (grad * (_normal_cdf(x) + x * density),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_bwd)


def _row_mean(x_NxC: Array) -> Array:
    """[N]. On a CPU a product with a vector runs at the memory's speed, and XLA's sum over the last axis at a third of it."""
    width = x_NxC.shape[1]
    return jax.lax.platform_dependent(
        x_NxC,
        cpu=lambda x_NxC: x_NxC @ jnp.full(width, 1 / width, x_NxC.dtype),
        default=lambda x_NxC: jnp.mean(x_NxC, axis=1),
    )


def _moments(x_NxC: Array) -> tuple[Array, Array]:
    """Mean and variance, [N] each."""
    mean_N = _row_mean(x_NxC)
    centred = x_NxC - mean_N[:, None]
    return mean_N, _row_mean(centred * centred)


def _moments_in_one_pass(x_NxC: Array) -> tuple[Array, Array]:
    """The same for TPUs, which take both sums within the product that makes x: 7% of a Base layer on a v5e, by its compiler.

    As flax does by default; float32 loses log2(1 + mean^2 / variance) bits by it.
    """
    mean_N = jnp.mean(x_NxC, axis=1)
    return mean_N, jnp.maximum(jnp.mean(x_NxC * x_NxC, axis=1) - mean_N * mean_N, 0.0)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x_NxC: Array, scale_C: Array, bias_C: Array, epsilon: float) -> Array:
    """(x - mean) / sqrt(variance + epsilon) x scale + bias over the last axis, in at least float32, in the type of x.

    Keeps x, its means and its deviations, and computes the rest again. 2.5 ms against 3.4.
    """
    return _layer_norm_fwd(x_NxC, scale_C, bias_C, epsilon)[0]


def _layer_norm_fwd(x_NxC, scale_C, bias_C, epsilon):
    wide = x_NxC.astype(wide_type(x_NxC))
    mean_N, variance_N = jax.lax.platform_dependent(wide, tpu=_moments_in_one_pass, default=_moments)
    inverse_N = jax.lax.rsqrt(variance_N + epsilon)
    y_NxC = (wide - mean_N[:, None]) * inverse_N[:, None] * scale_C[None] + bias_C[None]
    return y_NxC.astype(x_NxC.dtype), (x_NxC, mean_N, inverse_N, scale_C)


def _layer_norm_bwd(epsilon, residuals, grad_NxC):
    x_NxC, mean_N, inverse_N, scale_C = residuals
    grad = grad_NxC.astype(mean_N.dtype)
    normal = (x_NxC.astype(mean_N.dtype) - mean_N[:, None]) * inverse_N[:, None]
    scaled = grad * scale_C[None]
    grad_x = (scaled - _row_mean(scaled)[:, None] - normal * _row_mean(scaled * normal)[:, None]) * inverse_N[:, None]
    grad_scale, grad_bias = jnp.sum(grad * normal, axis=0), jnp.sum(grad, axis=0)
    return grad_x.astype(x_NxC.dtype), grad_scale.astype(scale_C.dtype), grad_bias.astype(scale_C.dtype)


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


@jax.custom_vjp
def product(x_NxC: Array, kernel_CxF: Array) -> Array:
    """x @ kernel, [N, F], in the type of x. The gradient of the kernel is in the kernel's own type: no sum is rounded to bfloat16.

    A kernel of another type is cast once. Without the barrier XLA casts it on a TPU within each product that reads it, a tile at a time,
    which takes longer than the products gain: one v5e chip's step of `base` is 74 M cycles by its compiler against 91 M.
    Where the product narrows (F below C) the kernel's gradient is (g^T x)^T on a CPU: x^T g, the derived order, runs there at half the
    speed, and the barrier keeps XLA from turning it back. 65 ms a feed-forward layer against 73.
    """
    return _product_fwd(x_NxC, kernel_CxF)[0]


def _product_fwd(x_NxC, kernel_CxF):
    narrow_CxF = kernel_CxF
    if kernel_CxF.dtype != x_NxC.dtype:
        narrow_CxF = jax.lax.optimization_barrier(kernel_CxF.astype(x_NxC.dtype))
    return x_NxC @ narrow_CxF, (x_NxC, narrow_CxF, kernel_CxF)


def _product_bwd(residuals, grad_NxF):
    x_NxC, narrow_CxF, kernel_CxF = residuals  # the last for its type
    times = partial(jnp.matmul, preferred_element_type=kernel_CxF.dtype)

    def turned(x_NxC, grad_NxF):
        return jax.lax.optimization_barrier(times(grad_NxF.T, x_NxC)).T

    def derived(x_NxC, grad_NxF):
        return times(x_NxC.T, grad_NxF)

    if grad_NxF.shape[1] < x_NxC.shape[1]:
        grad_CxF = jax.lax.platform_dependent(x_NxC, grad_NxF, cpu=turned, default=derived)
    else:
        grad_CxF = derived(x_NxC, grad_NxF)
    return grad_NxF @ narrow_CxF.T, grad_CxF


product.defvjp(_product_fwd, _product_bwd)


def vocabulary_logits(x_SxE: Array, word_VxE: Array, bias_V: Array) -> Array:
    """[S, V], at least float32."""
    return jnp.einsum("se,ve->sv", x_SxE, word_VxE, preferred_element_type=wide_type(x_SxE)) + bias_V[None]


@jax.custom_vjp
def vocabulary_nll(x_SxE: Array, word_VxE: Array, bias_V: Array, targets_S: Array) -> tuple[Array, Array, Array]:
    """(-log softmax(vocabulary_logits)[target] [S], the unnormalised probabilities [S, V], is the target the likeliest [S] bool).

    At least float32. The probabilities are exp(logit - the row's largest), for sampling; no gradient flows through them.
    The backward pass multiplies them as they are, and scales and corrects by target on the side of [S, E]: nothing but the two products
    reads [S, V] again. 97 ms with sampling, 608 slots and 30,522 words, against 162, and 235 with an argmax for the accuracy.
    """
    return _vocabulary_nll_fwd(x_SxE, word_VxE, bias_V, targets_S)[0]


def _vocabulary_nll_fwd(x_SxE, word_VxE, bias_V, targets_S):
    logits_SxV = vocabulary_logits(x_SxE, word_VxE, bias_V)
    best_S = jnp.max(logits_SxV, axis=1)
    target_S = jax.lax.platform_dependent(logits_SxV, targets_S, tpu=_pick_by_sum, default=_pick)
    mass_SxV = jnp.exp(logits_SxV - best_S[:, None])
    total_S = jnp.sum(mass_SxV, axis=1)
    out = jnp.log(total_S) + best_S - target_S, mass_SxV, target_S >= best_S
    return out, (x_SxE, word_VxE, targets_S, mass_SxV, total_S)


def _pick(logits_SxV, targets_S):
    return jnp.take_along_axis(logits_SxV, targets_S[:, None], axis=1)[:, 0]


def _pick_by_sum(logits_SxV, targets_S):
    """The same for TPUs, which copy all logits for a look-up."""
    return jnp.sum(jnp.where(targets_S[:, None] == jnp.arange(logits_SxV.shape[1])[None], logits_SxV, 0), axis=1)


def _vocabulary_nll_bwd(residuals, grads):
    x_SxE, word_VxE, targets_S, mass_SxV, total_S = residuals
    grad_S, dtype, wide = grads[0], x_SxE.dtype, total_S.dtype
    share_S = grad_S / total_S
    x_wide = x_SxE.astype(wide)
    mass_narrow = mass_SxV.astype(dtype)
    expected_SxE = jnp.einsum("sv,ve->se", mass_narrow, word_VxE, preferred_element_type=wide)
    grad_x = expected_SxE * share_S[:, None] - word_VxE[targets_S].astype(wide) * grad_S[:, None]
    grad_word = jnp.einsum("sv,se->ve", mass_narrow, (x_wide * share_S[:, None]).astype(dtype), preferred_element_type=wide)
    grad_word = grad_word.at[targets_S].add(-x_wide * grad_S[:, None])
    grad_bias = (share_S @ mass_SxV).at[targets_S].add(-grad_S)
    return grad_x.astype(dtype), grad_word.astype(word_VxE.dtype), grad_bias, None


vocabulary_nll.defvjp(_vocabulary_nll_fwd, _vocabulary_nll_bwd)

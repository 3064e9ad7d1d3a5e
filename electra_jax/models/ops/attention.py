"""Scaled dot-product attention within segments, as XLA's own operations, with the backward pass of arXiv 2205.14135, B.4."""

from functools import partial

import jax
import jax.numpy as jnp

from electra_jax import rng
from electra_jax.models.ops.precision import wide_type
from electra_jax.types import Array

# The published code adds -10000 to masked scores (google-research/electra model/modeling.py). exp of either is exactly 0 beside a real
# score above -9,900, and a finite value keeps a row that is all padding free of NaN.
MASKED = -1e4


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def attention(
    q_BxLxHxD: Array,
    k_BxLxHxD: Array,
    v_BxLxHxD: Array,
    segments_BxL: Array,
    seeds_Bx2: Array | None,
    rate: float,
    direction_B: Array | None = None,
) -> Array:
    """dropout(softmax(q k^T / sqrt(D), within segments)) v, [B, L, H, D]. Scores and weights are at least float32.

    direction: as types.DirectedBatch has it.

    Dropout is a hash of its seeds, so the backward pass drops the weights again instead of keeping what was dropped: only the weights
    before dropout are kept, [B, H, L, L]. (On a CPU XLA merges the two and keeps both.)

    The gradient of the softmax needs, for each query, the sum over all keys of weight times its gradient. That sum equals the output
    times the output's gradient (FlashAttention, arXiv 2205.14135, B.4), also with dropout, and runs over the D features of a head
    instead of the L keys: about a tenth faster (docs/speed.md).
    """
    return _forward(q_BxLxHxD, k_BxLxHxD, v_BxLxHxD, segments_BxL, seeds_Bx2, rate, direction_B)[0]


def _drop(x, seeds_Bx2, rate):
    return x if seeds_Bx2 is None or not rate else rng.dropout(x, seeds_Bx2, rate)


def _forward(q_BxLxHxD, k_BxLxHxD, v_BxLxHxD, segments_BxL, seeds_Bx2, rate, direction_B):
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BxLxHxD, k_BxLxHxD, v_BxLxHxD))
    wide = wide_type(q)
    scores_BxHxLxM = jnp.einsum("bhld,bhmd->bhlm", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    same_Bx1xLxM = segments_BxL[:, None, :, None] == segments_BxL[:, None, None, :]
    if direction_B is not None:
        place_L = jnp.arange(segments_BxL.shape[1])
        same_Bx1xLxM &= direction_B[:, None, None, None] * (place_L[:, None] - place_L[None])[None, None] >= 0
    scores_BxHxLxM = jnp.where(same_Bx1xLxM, scores_BxHxLxM, jnp.asarray(MASKED, wide))
    weights_BxHxLxM = jnp.exp(scores_BxHxLxM - jnp.max(scores_BxHxLxM, axis=-1, keepdims=True))
    weights_BxHxLxM /= jnp.sum(weights_BxHxLxM, axis=-1, keepdims=True)
    out = jnp.einsum("bhlm,bhmd->bhld", _drop(weights_BxHxLxM, seeds_Bx2, rate).astype(v.dtype), v)
    return jnp.swapaxes(out, 1, 2), (q, k, v, weights_BxHxLxM, out, seeds_Bx2)


def _backward(rate, residuals, grad_BxLxHxD):
    # Without the barrier, XLA for TPUs keeps more arrays from the forward pass for this one (docs/speed.md).
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
    return *(jnp.swapaxes(x, 1, 2) for x in grads), None, None, None


attention.defvjp(_forward, _backward)

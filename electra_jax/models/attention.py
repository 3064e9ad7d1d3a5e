"""Self-attention over packed rows: a token sees the tokens of its own segment, and nothing else."""

import jax.numpy as jnp

from electra_jax import rng
from electra_jax.types import Array

# The published code adds -10000 to masked scores (google-research/electra model/modeling.py). exp of either is exactly 0 beside any
# real score, and a finite value keeps a row that is all padding free of NaN.
MASKED = -1e4


def rotate(x_BxLxHxD: Array, positions_BxL: Array) -> Array:
    """Rotary positions (arXiv 2104.09864, base 10000): dimension i turns with i + D/2, so that scores depend on distance alone.

    RoFormer's published code turns neighbouring pairs (2i, 2i + 1): the same up to a fixed permutation of query and key rows.
    """
    half = x_BxLxHxD.shape[-1] // 2
    wide = jnp.promote_types(x_BxLxHxD.dtype, jnp.float32)
    rate_d = jnp.asarray(10000.0, wide) ** (-jnp.arange(half, dtype=wide) / half)
    angle_BxLx1xd = positions_BxL.astype(wide)[:, :, None, None] * rate_d[None, None, None, :]
    cos, sin = jnp.cos(angle_BxLx1xd).astype(x_BxLxHxD.dtype), jnp.sin(angle_BxLx1xd).astype(x_BxLxHxD.dtype)
    a, b = x_BxLxHxD[..., :half], x_BxLxHxD[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(q_BxLxHxD: Array, k_BxLxHxD: Array, v_BxLxHxD: Array, segments_BxL: Array, seeds_Bx2: Array | None, rate: float) -> Array:
    """Scaled dot-product attention within segments, [B, L, H, D].

    Scores and softmax are at least float32. Dropout falls on the attention weights (`rate`, only where `seeds_Bx2` are given).
    """
    wide = jnp.promote_types(q_BxLxHxD.dtype, jnp.float32)
    scores_BxHxLxM = jnp.einsum("blhd,bmhd->bhlm", q_BxLxHxD, k_BxLxHxD, preferred_element_type=wide)
    scores_BxHxLxM *= q_BxLxHxD.shape[-1] ** -0.5
    same_Bx1xLxM = segments_BxL[:, None, :, None] == segments_BxL[:, None, None, :]
    scores_BxHxLxM = jnp.where(same_Bx1xLxM, scores_BxHxLxM, jnp.asarray(MASKED, wide))
    weights_BxHxLxM = jnp.exp(scores_BxHxLxM - jnp.max(scores_BxHxLxM, axis=-1, keepdims=True))
    weights_BxHxLxM /= jnp.sum(weights_BxHxLxM, axis=-1, keepdims=True)
    if seeds_Bx2 is not None and rate:
        weights_BxHxLxM = rng.dropout(weights_BxHxLxM, seeds_Bx2, rate)
    return jnp.einsum("bhlm,bmhd->blhd", weights_BxHxLxM.astype(v_BxLxHxD.dtype), v_BxLxHxD)

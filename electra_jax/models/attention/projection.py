"""Queries, keys and values by heads: what every path begins with that does not project by itself."""

from collections.abc import Sequence

import jax.numpy as jnp

from electra_jax.models.config import EncoderConfig
from electra_jax.models.ops.dense import product
from electra_jax.models.ops.precision import wide_type
from electra_jax.types import Array, Batch


def project(x_NxH: Array, kernels: Sequence[Array], biases: Sequence[Array], batch: Batch, config: EncoderConfig) -> list[Array]:
    """Queries, keys and values, [B, L, H, D] each; queries and keys are turned where positions are rotary.

    They are one product of all three, which a CPU computes a little faster than three (docs/speed.md).
    """
    qkv_Nx3H = product(x_NxH, jnp.concatenate(kernels, axis=1)) + jnp.concatenate(biases).astype(x_NxH.dtype)[None]
    q, k, v = (x.reshape(*batch.segments.shape, config.num_heads, config.head_size) for x in jnp.split(qkv_Nx3H, 3, axis=1))
    if config.positions == "rotary":
        q, k = rotate(q, batch.positions), rotate(k, batch.positions)
    return [q, k, v]


def rotate(x_BxLxHxD: Array, positions_BxL: Array) -> Array:
    """Rotary positions (arXiv 2104.09864, base 10000): dimension i turns with i + D/2, so that scores depend on distance alone.

    RoFormer's published code turns neighbouring pairs (2i, 2i + 1): the same up to a fixed permutation of query and key rows.
    """
    half, wide = x_BxLxHxD.shape[-1] // 2, wide_type(x_BxLxHxD)
    rate_d = jnp.asarray(10000.0, wide) ** (-jnp.arange(half, dtype=wide) / half)
    angle_BxLx1xd = positions_BxL.astype(wide)[:, :, None, None] * rate_d[None, None, None, :]
    cos, sin = jnp.cos(angle_BxLx1xd).astype(x_BxLxHxD.dtype), jnp.sin(angle_BxLx1xd).astype(x_BxLxHxD.dtype)
    a, b = x_BxLxHxD[..., :half], x_BxLxHxD[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

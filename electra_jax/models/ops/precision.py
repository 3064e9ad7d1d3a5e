"""The types that sums are taken in."""

import jax.numpy as jnp

from electra_jax.types import Array


def wide_type(x: Array):
    """The type of sums over x: at least float32."""
    return jnp.promote_types(x.dtype, jnp.float32)

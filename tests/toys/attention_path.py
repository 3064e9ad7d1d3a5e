"""A path of attention on which every token of a segment has the same weight."""

import jax.numpy as jnp

from electra_jax.models.attention import NO_DROPOUT, Path
from electra_jax.models.attention.projection import project


def _refuses(network, length, platform):
    if length > 64:
        return f"rows of {length} tokens are too long for a toy"
    return NO_DROPOUT if network.attention_dropout else None


def _apply(x_NxH, kernels, biases, batch, seeds_Bx2, config):
    v_BxLxHxD = project(x_NxH, kernels, biases, batch, config)[2]
    same_BxLxM = (batch.segments[:, :, None] == batch.segments[:, None, :]).astype(v_BxLxHxD.dtype)
    weights_BxLxM = same_BxLxM / jnp.sum(same_BxLxM, axis=-1, keepdims=True)
    return jnp.einsum("blm,bmhd->blhd", weights_BxLxM, v_BxLxHxD).reshape(x_NxH.shape)


PATH = Path(_refuses, _apply)

"""Attention by cuDNN's fused kernel, for NVIDIA GPUs."""

import jax
import jax.numpy as jnp

from electra_jax.models.attention import NO_DROPOUT, Path
from electra_jax.models.attention.projection import project
from electra_jax.models.ops.attention import MASKED
from electra_jax.parallel import sharding
from electra_jax.types import Array


def _refuses(network, length, platform):
    if platform != "gpu":
        return "it runs on an NVIDIA GPU"
    if network.dtype != "bfloat16":
        return f"it needs bfloat16 and model.dtype is {network.dtype}"
    if network.head_size % 8 or network.head_size > 128:
        return f"heads are {network.head_size} wide, not a multiple of 8 up to 128"
    return NO_DROPOUT if network.attention_dropout else None


def _apply(x_NxH, kernels, biases, batch, seeds_Bx2, config):
    q, k, v = project(x_NxH, kernels, biases, batch, config)
    return sharding.per_device(cudnn)(q, k, v, batch.segments).reshape(x_NxH.shape)


def cudnn(q_BxLxHxD: Array, k_BxLxHxD: Array, v_BxLxHxD: Array, segments_BxL: Array) -> Array:
    """[B, L, H, D]. Segments go in as a bias, because cuDNN's own masks know the lengths of rows and no packing."""
    same_Bx1xLxM = segments_BxL[:, None, :, None] == segments_BxL[:, None, None, :]
    bias_Bx1xLxM = jnp.where(same_Bx1xLxM, 0.0, MASKED).astype(q_BxLxHxD.dtype)
    return jax.nn.dot_product_attention(q_BxLxHxD, k_BxLxHxD, v_BxLxHxD, bias_Bx1xLxM, implementation="cudnn")


PATH = Path(_refuses, _apply)

"""Attention by a Pallas kernel of our own (row_kernel.py), for TPUs and rows of up to 1,024 tokens; no rotary positions."""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp

from electra_jax.models.attention import NO_DROPOUT, Path, row_kernel
from electra_jax.models.ops.dense import product
from electra_jax.parallel import sharding
from electra_jax.types import Array


def _refuses(network, length, platform):
    heads, size = network.num_heads, network.head_size
    if platform != "tpu":
        return "it runs on a TPU"
    if network.positions == "rotary":
        return "it does not support rotary positions: model.attention=splash"
    if not row_kernel.fits(length, heads, size):
        return f"{heads} heads of {size} over rows of {length} tokens do not suit it: model.attention=splash"
    return NO_DROPOUT if network.attention_dropout else None


def _apply(x_NxH, kernels, biases, batch, seeds_Bx2, config):
    # Heads stay side by side, and the kernel adds the biases: see row_kernel.attend.
    products = [product(x_NxH, kernel).reshape(*batch.segments.shape, -1) for kernel in kernels]
    return attend(products, biases, batch.segments, config.head_size).reshape(x_NxH.shape)


def attend(
    products_BxLxC: Sequence[Array], biases_C: Sequence[Array], segments_BxL: Array, head_size: int, interpret: bool = False
) -> Array:
    """[B, L, H x D], each device on its own rows, of queries, keys and values [B, L, H x D] that still lack their biases [H x D]."""
    biases_Bx1xC = tuple(jnp.broadcast_to(x_C, (segments_BxL.shape[0], 1, x_C.shape[0])) for x_C in biases_C)
    run = partial(row_kernel.attend, head_size=head_size, interpret=interpret)
    return sharding.per_device(run)(tuple(products_BxLxC), biases_Bx1xC, segments_BxL)


PATH = Path(_refuses, _apply)

"""Attention by the Pallas kernel that jax brings for TPUs (splash), for rows of any multiple of 128 tokens."""

import jax
import jax.numpy as jnp

from electra_jax.models.attention import NO_DROPOUT, Path
from electra_jax.models.attention.projection import project
from electra_jax.parallel import sharding
from electra_jax.types import Array

_RESIDUALS = "attention_residuals"  # what the backward kernel needs of the forward one: never computed again


def _refuses(network, length, platform):
    if platform != "tpu":
        return "it runs on a TPU"
    if length % 128:
        return f"rows of {length} tokens are no multiple of 128"
    return NO_DROPOUT if network.attention_dropout else None


def _apply(x_NxH, kernels, biases, batch, seeds_Bx2, config):
    q, k, v = project(x_NxH, kernels, biases, batch, config)
    return attend(q, k, v, batch.segments).reshape(x_NxH.shape)


def attend(q_BxLxHxD: Array, k_BxLxHxD: Array, v_BxLxHxD: Array, segments_BxL: Array) -> Array:
    """[B, L, H, D], each device on its own rows. The backward pass keeps queries, keys and values as [B, L, H x D].

    A TPU pads the last two axes of an array in memory to 16 x 128, so that heads of 64 kept by themselves would take 2.7 times the
    bytes (docs/speed.md).
    """
    B, L, H, D = q_BxLxHxD.shape
    kernel = sharding.per_device(splash)

    def on_flat(*qkv_BxLxC):
        return kernel(*(x.reshape(B, L, H, D) for x in qkv_BxLxC), segments_BxL).reshape(B, L, H * D)

    on_flat = jax.checkpoint(on_flat, policy=jax.checkpoint_policies.save_only_these_names(_RESIDUALS))
    return on_flat(*(x.reshape(B, L, H * D) for x in (q_BxLxHxD, k_BxLxHxD, v_BxLxHxD))).reshape(B, L, H, D)


def splash(q_BxLxHxD: Array, k_BxLxHxD: Array, v_BxLxHxD: Array, segments_BxL: Array, interpret: bool = False) -> Array:
    """[B, L, H, D] by jax's kernel, with its fused backward pass. interpret: on any platform, slowly."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, L, H, D = q_BxLxHxD.shape
    block = next(size for size in (1024, 512, 256, 128) if L % size == 0)  # 2,048 is more than a TPU's VMEM holds
    blocks = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )
    everywhere = masks.MultiHeadMask([masks.FullMask((L, L))] * H)
    kernel = kernels.make_splash_mha_single_device(everywhere, block_sizes=blocks, interpret=interpret, residual_checkpoint_name=_RESIDUALS)

    def one_row(q_HxLxD, k_HxLxD, v_HxLxD, segments_L):
        return kernel(q_HxLxD, k_HxLxD, v_HxLxD, kernels.SegmentIds(segments_L, segments_L))

    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BxLxHxD * D**-0.5, k_BxLxHxD, v_BxLxHxD))
    return jnp.swapaxes(jax.vmap(one_row)(q, k, v, segments_BxL), 1, 2).astype(v_BxLxHxD.dtype)


PATH = Path(_refuses, _apply)

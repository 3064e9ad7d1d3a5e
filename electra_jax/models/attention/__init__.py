"""Self-attention over packed rows: a token sees the tokens of its own segment, and nothing else."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from electra_jax.cli import UserError
from electra_jax.models import backward
from electra_jax.models.attention import row_kernel
from electra_jax.models.config import EncoderConfig
from electra_jax.parallel import sharding
from electra_jax.types import Array

_RESIDUALS = "attention_residuals"  # what the backward kernel needs of the forward one: never computed again


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


def choose(attention: str, platform: str, length: int, networks: Sequence[EncoderConfig]) -> str:
    """The one path of the networks' attention, "xla", "rows", "splash" or "cudnn", from what was asked for ("auto" or one of them).

    The fused ones never write the scores to memory, and have no dropout on attention weights: a rate above 0 means xla. Those for
    TPUs want lengths that are multiples of 128, `rows` at most 1,024, and below 256 the scores are too small to be worth a kernel;
    cuDNN (GPU) wants two-byte types and heads of a multiple of 8 up to 128. UserError where the one asked for cannot run here.
    """
    failing = {"rows": [], "splash": [], "cudnn": []}  # the first that fails nowhere is the best
    for network in networks:
        heads, size, dtype = network.num_heads, network.head_size, network.dtype
        reasons = {
            "rows": [
                ("it runs on a TPU", platform == "tpu"),
                ("it adds biases where rotary positions have turned them: model.attention=splash", network.positions != "rotary"),
                (
                    f"{heads} heads of {size} over rows of {length} tokens do not suit it: model.attention=splash",
                    row_kernel.fits(length, heads, size),
                ),
            ],
            "splash": [
                ("it runs on a TPU", platform == "tpu"),
                (f"rows of {length} tokens are no multiple of 128", length % 128 == 0),
            ],
            "cudnn": [
                ("it runs on an NVIDIA GPU", platform == "gpu"),
                (f"it needs bfloat16 and model.dtype is {dtype}", dtype == "bfloat16"),
                (f"heads are {size} wide, not a multiple of 8 up to 128", size % 8 == 0 and size <= 128),
            ],
        }
        no_dropout = ("it has no dropout on attention weights: --config.model.attention_dropout=0", network.attention_dropout == 0)
        for name, rules in reasons.items():
            failing[name] += [why for why, holds in (*rules, no_dropout) if not holds]
    if attention == "auto":
        able = [name for name, why in failing.items() if not why]
        return able[0] if able and length >= 256 else "xla"
    if failing.get(attention):
        raise UserError(f"model.attention={attention}: {failing[attention][0]} (model.attention=auto takes what can run)")
    return attention


def attend(
    q_BxLxHxD: Array, k_BxLxHxD: Array, v_BxLxHxD: Array, segments_BxL: Array, seeds_Bx2: Array | None, rate: float, path: str = "xla"
) -> Array:
    """Scaled dot-product attention within segments, [B, L, H, D], by one of `choose`'s paths (`rows` stands apart).

    Scores and softmax are at least float32. Dropout falls on the attention weights (`rate`, only where `seeds_Bx2` are given).
    """
    if path in ("splash", "cudnn"):
        kernel = _flat_residuals(sharding.per_device(splash)) if path == "splash" else sharding.per_device(cudnn)
        return kernel(q_BxLxHxD, k_BxLxHxD, v_BxLxHxD, segments_BxL)
    return backward.attention(q_BxLxHxD, k_BxLxHxD, v_BxLxHxD, segments_BxL, seeds_Bx2, rate)


def rows(products_BxLxC: Sequence[Array], biases_C: Sequence[Array], segments_BxL: Array, head_size: int, interpret: bool = False) -> Array:
    """The same by our kernel for TPUs, of queries, keys and values [B, L, H x D] and the biases [H x D] that they lack. [B, L, H x D]."""
    biases_Bx1xC = tuple(jnp.broadcast_to(x_C, (segments_BxL.shape[0], 1, x_C.shape[0])) for x_C in biases_C)
    run = partial(row_kernel.attend, head_size=head_size, interpret=interpret)
    return sharding.per_device(run)(tuple(products_BxLxC), biases_Bx1xC, segments_BxL)


def _flat_residuals(kernel):
    """`kernel`, whose backward pass finds queries, keys and values as [B, L, H x D] and cuts them into heads again.

    A TPU pads the last two axes in memory to 16 x 128: [.., 12, 64] takes 2.7 times the bytes of [.., 768], a fifth of Base's peak.
    """

    def run(q_BxLxHxD, k_BxLxHxD, v_BxLxHxD, segments_BxL):
        B, L, H, D = q_BxLxHxD.shape

        def on_flat(*qkv_BxLxC):
            return kernel(*(x.reshape(B, L, H, D) for x in qkv_BxLxC), segments_BxL).reshape(B, L, H * D)

        on_flat = jax.checkpoint(on_flat, policy=jax.checkpoint_policies.save_only_these_names(_RESIDUALS))
        return on_flat(*(x.reshape(B, L, H * D) for x in (q_BxLxHxD, k_BxLxHxD, v_BxLxHxD))).reshape(B, L, H, D)

    return run


def splash(q_BxLxHxD: Array, k_BxLxHxD: Array, v_BxLxHxD: Array, segments_BxL: Array, interpret: bool = False) -> Array:
    """The same by the Pallas kernel that jax brings for TPUs, with its fused backward pass. `interpret`: on any platform, slowly."""
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


def cudnn(q_BxLxHxD: Array, k_BxLxHxD: Array, v_BxLxHxD: Array, segments_BxL: Array) -> Array:
    """The same by cuDNN's fused kernel. Segments go in as a bias: its own masks know lengths of rows and no packing."""
    same_Bx1xLxM = segments_BxL[:, None, :, None] == segments_BxL[:, None, None, :]
    bias_Bx1xLxM = jnp.where(same_Bx1xLxM, 0.0, backward.MASKED).astype(q_BxLxHxD.dtype)
    return jax.nn.dot_product_attention(q_BxLxHxD, k_BxLxHxD, v_BxLxHxD, bias_Bx1xLxM, implementation="cudnn")

"""Attention within segments as one Pallas kernel for TPUs, for rows whose keys fit on the chip together.

jax's splash kernel (splash.py) serves any length, by blocks and with a running maximum, and reads [B, H, L, D]. Where all keys of a
row are at hand, two things are better:

- Heads stay where the matrix products put them, [B, L, H x D]: a block is 128 columns, two heads of 64. A TPU multiplies 128 by 128,
  so that a head of 64 is no cheaper alone; its neighbour's columns are set to 0 on one side of a product. No transposes, and no
  array whose last axis of 64 is padded to 128.
- Scores are [keys, queries]: a query's maximum and sum go over registers and not across one, and what the backward pass keeps of
  them is a row of floats. The gradient of queries alone is transposed.

By the simulator it takes two thirds of splash's cycles, and by the compiler's count half of the copies around it (docs/speed.md). No
chip has run it yet: the tests run it in interpret mode, in float32.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from electra_jax.models.ops.attention import MASKED
from electra_jax.types import Array

Arrays = tuple[Array, Array, Array]

LANES = 128
MAX_LENGTH = 1024  # the scores of 512 queries, a few times over, are 8 MiB of the 16 that a kernel has
FORWARD, BACKWARD = "row_attention_forward", "row_attention_backward"  # what the compiled program calls them

_ANY_ORDER = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"))  # a v4 or v5p deals the blocks out to its two cores

_A_BT = (((1,), (1,)), ((), ()))
_AB = (((1,), (0,)), ((), ()))


def fits(length: int, num_heads: int, head_size: int) -> bool:
    """Whether rows of so many tokens can be cut into blocks of whole heads."""
    width = num_heads * head_size
    return length % LANES == 0 and length <= MAX_LENGTH and (width < LANES or (width % LANES == 0 and LANES % head_size == 0))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def attend(qkv: Arrays, biases: Arrays, segments_BxL: Array, head_size: int, interpret: bool = False) -> Array:
    """Scaled dot-product attention within segments of heads side by side, C = H x D, where it `fits`. [B, L, C].

    qkv: queries, keys and values [B, L, C] without their `biases` [B, 1, C], which are added here, because here the sums that are
    their gradients cost nothing. Sums, scores and softmax are float32. interpret: on any platform, slowly.
    """
    return _forward(qkv, biases, segments_BxL, head_size, interpret)[0]


def _forward(qkv, biases, segments_BxL, head_size, interpret):
    q_BxLxC = qkv[0]
    wide, bias, per_query, segments = _specs(q_BxLxC, head_size)
    y_BxLxC, logsumexp = pl.pallas_call(
        partial(_forward_kernel, head_size=head_size),
        grid=_grid(q_BxLxC),
        in_specs=[wide] * 3 + [bias] * 3 + segments,
        out_specs=[wide, per_query],
        out_shape=[_like(q_BxLxC), _statistics(q_BxLxC, head_size)],
        compiler_params=_ANY_ORDER,
        name=FORWARD,
        interpret=interpret,
    )(*qkv, *biases, *_both_ways(segments_BxL))
    return y_BxLxC, (qkv, biases, segments_BxL, logsumexp)


def _backward(head_size, interpret, residuals, g_BxLxC):
    qkv, biases, segments_BxL, logsumexp = residuals
    wide, bias, per_query, segments = _specs(g_BxLxC, head_size)
    grads = pl.pallas_call(
        partial(_backward_kernel, head_size=head_size),
        grid=_grid(g_BxLxC),
        in_specs=[wide] * 3 + [bias] * 3 + segments + [per_query, wide],
        out_specs=[wide] * 3 + [bias] * 3,
        out_shape=[_like(x) for x in (*qkv, *biases)],
        compiler_params=_ANY_ORDER,
        name=BACKWARD,
        interpret=interpret,
    )(*qkv, *biases, *_both_ways(segments_BxL), logsumexp, g_BxLxC)
    return tuple(grads[:3]), tuple(grads[3:]), None


attend.defvjp(_forward, _backward)


# --- One row, 128 columns (W): heads of D, one after another. Queries in parts (P), against all keys (L).


def _forward_kernel(
    q_ref, k_ref, v_ref, q_bias_ref, k_bias_ref, v_bias_ref, query_segment_ref, key_segment_ref, y_ref, logsumexp_ref, *, head_size
):
    k_LxW, v_WxL = _biased(k_ref[0], k_bias_ref), _biased(v_ref[0], v_bias_ref).T
    for part in _parts(k_LxW.shape[0]):
        q_PxW = _biased(q_ref[0, part], q_bias_ref)
        same_LxP = key_segment_ref[0] == query_segment_ref[0, :, part]
        y_WxP = []
        for number, columns in enumerate(_heads(q_PxW, head_size)):
            scores_LxP = _scores(k_LxW, _only(q_PxW, columns), same_LxP, head_size)
            max_1xP = jnp.max(scores_LxP, axis=0, keepdims=True)
            weights_LxP = jnp.exp(scores_LxP - max_1xP)
            sum_1xP = jnp.sum(weights_LxP, axis=0, keepdims=True)
            y_WxP.append(_product(v_WxL[columns], weights_LxP.astype(v_WxL.dtype)) / sum_1xP)
            logsumexp_ref[0, 0, number : number + 1, part] = max_1xP + jnp.log(sum_1xP)
        y_ref[0, part] = jnp.concatenate(y_WxP, axis=0).T.astype(y_ref.dtype)


def _backward_kernel(
    q_ref,
    k_ref,
    v_ref,
    q_bias_ref,
    k_bias_ref,
    v_bias_ref,
    query_segment_ref,
    key_segment_ref,
    logsumexp_ref,
    g_ref,
    dq_ref,
    dk_ref,
    dv_ref,
    dq_bias_ref,
    dk_bias_ref,
    dv_bias_ref,
    *,
    head_size,
):
    k_LxW, v_LxW = _biased(k_ref[0], k_bias_ref), _biased(v_ref[0], v_bias_ref)
    k_WxL = k_LxW.T
    dk_LxW, dv_LxW = (jnp.zeros(k_LxW.shape, jnp.float32) for _ in range(2))
    dq_bias_1xW = jnp.zeros((1, k_LxW.shape[1]), jnp.float32)
    for part in _parts(k_LxW.shape[0]):
        q_PxW, g_PxW = _biased(q_ref[0, part], q_bias_ref), g_ref[0, part]
        same_LxP = key_segment_ref[0] == query_segment_ref[0, :, part]
        dq_WxP = []
        for number, columns in enumerate(_heads(q_PxW, head_size)):
            q_head_PxW, g_head_PxW = _only(q_PxW, columns), _only(g_PxW, columns)
            scores_LxP = _scores(k_LxW, q_head_PxW, same_LxP, head_size)
            weights_LxP = jnp.exp(scores_LxP - logsumexp_ref[0, 0, number : number + 1, part])
            dweights_LxP = _product(v_LxW, g_head_PxW, _A_BT)
            dscores_LxP = weights_LxP * (dweights_LxP - jnp.sum(weights_LxP * dweights_LxP, axis=0, keepdims=True))
            dscores_LxP = (dscores_LxP * head_size**-0.5).astype(q_PxW.dtype)
            dv_LxW += _product(weights_LxP.astype(q_PxW.dtype), g_head_PxW)
            dk_LxW += _product(dscores_LxP, q_head_PxW)
            dq_WxP.append(_product(k_WxL[columns], dscores_LxP))
        dq_PxW = jnp.concatenate(dq_WxP, axis=0).T
        dq_bias_1xW += jnp.sum(dq_PxW, axis=0, keepdims=True)
        dq_ref[0, part] = dq_PxW.astype(dq_ref.dtype)
    dk_ref[0], dv_ref[0] = dk_LxW.astype(dk_ref.dtype), dv_LxW.astype(dv_ref.dtype)
    sums = dq_bias_1xW, *(jnp.sum(x, axis=0, keepdims=True) for x in (dk_LxW, dv_LxW))
    for ref, sum_1xW in zip((dq_bias_ref, dk_bias_ref, dv_bias_ref), sums, strict=True):
        ref[0] = sum_1xW.astype(ref.dtype)


def _biased(x_PxW, bias_ref):
    return (x_PxW.astype(jnp.float32) + bias_ref[0]).astype(x_PxW.dtype)


def _scores(k_LxW, q_head_PxW, same_LxP, head_size):
    return jnp.where(same_LxP, _product(k_LxW, q_head_PxW, _A_BT) * head_size**-0.5, MASKED)


def _product(a, b, dimensions=_AB):
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _parts(length: int) -> list[slice]:
    size = next(size for size in (512, 256, LANES) if length % size == 0)
    return [slice(start, start + size) for start in range(0, length, size)]


def _heads(x_PxW, head_size) -> list[slice]:
    return [slice(start, start + head_size) for start in range(0, x_PxW.shape[1], head_size)]


def _only(x_PxW, columns: slice):
    column_1xW = jax.lax.broadcasted_iota(jnp.int32, (1, x_PxW.shape[1]), 1)
    return jnp.where((column_1xW >= columns.start) & (column_1xW < columns.stop), x_PxW, 0)


# --- What is where


def _width(x_BxLxC) -> int:
    return min(LANES, x_BxLxC.shape[2])


def _grid(x_BxLxC):
    return x_BxLxC.shape[0], x_BxLxC.shape[2] // _width(x_BxLxC)


def _specs(x_BxLxC, head_size):
    """Blocks of the columns of one row, of a bias, of what is kept of each query, and of the segments of queries and keys."""
    L, W = x_BxLxC.shape[1], _width(x_BxLxC)
    return (
        pl.BlockSpec((1, L, W), lambda row, block: (row, 0, block)),
        pl.BlockSpec((1, 1, W), lambda row, block: (row, 0, block)),
        pl.BlockSpec((1, 1, W // head_size, L), lambda row, block: (row, block, 0, 0)),
        [pl.BlockSpec((1, 1, L), lambda row, block: (row, 0, 0)), pl.BlockSpec((1, L, 1), lambda row, block: (row, 0, 0))],
    )


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _statistics(x_BxLxC, head_size):
    B, L, _ = x_BxLxC.shape
    return jax.ShapeDtypeStruct((B, _grid(x_BxLxC)[1], _width(x_BxLxC) // head_size, L), jnp.float32)


def _both_ways(segments_BxL):
    return segments_BxL[:, None, :], segments_BxL[:, :, None]

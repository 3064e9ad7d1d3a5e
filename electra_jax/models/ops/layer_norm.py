"""LayerNorm (arXiv 1607.06450) over the last axis."""

from functools import partial

import jax
import jax.numpy as jnp

from electra_jax.models.ops.precision import wide_type
from electra_jax.types import Array


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x_NxC: Array, scale_C: Array, bias_C: Array, epsilon: float) -> Array:
    """(x - mean) / sqrt(variance + epsilon) x scale + bias, in at least float32, in the type of x.

    The backward pass keeps x and two numbers per row, its mean and its inverse deviation, and computes the rest again.
    """
    return _forward(x_NxC, scale_C, bias_C, epsilon)[0]


def _row_mean(x_NxC: Array) -> Array:
    """[N]. On a CPU a product with a vector runs at the memory's speed, and XLA's sum over the last axis is slower (docs/speed.md)."""
    width = x_NxC.shape[1]
    return jax.lax.platform_dependent(
        x_NxC,
        cpu=lambda x_NxC: x_NxC @ jnp.full(width, 1 / width, x_NxC.dtype),
        default=lambda x_NxC: jnp.mean(x_NxC, axis=1),
    )


def moments(x_NxC: Array) -> tuple[Array, Array]:
    """Mean and variance, [N] each."""
    mean_N = _row_mean(x_NxC)
    centred = x_NxC - mean_N[:, None]
    return mean_N, _row_mean(centred * centred)


def moments_in_one_pass(x_NxC: Array) -> tuple[Array, Array]:
    """The same for TPUs, where XLA takes both sums while it computes the product that makes x (docs/speed.md).

    flax's LayerNorm does so by default; float32 loses log2(1 + mean^2 / variance) bits by it.
    """
    mean_N = jnp.mean(x_NxC, axis=1)
    return mean_N, jnp.maximum(jnp.mean(x_NxC * x_NxC, axis=1) - mean_N * mean_N, 0.0)


def _forward(x_NxC, scale_C, bias_C, epsilon):
    wide = x_NxC.astype(wide_type(x_NxC))
    mean_N, variance_N = jax.lax.platform_dependent(wide, tpu=moments_in_one_pass, default=moments)
    inverse_N = jax.lax.rsqrt(variance_N + epsilon)
    y_NxC = (wide - mean_N[:, None]) * inverse_N[:, None] * scale_C[None] + bias_C[None]
    return y_NxC.astype(x_NxC.dtype), (x_NxC, mean_N, inverse_N, scale_C)


def _backward(epsilon, residuals, grad_NxC):
    x_NxC, mean_N, inverse_N, scale_C = residuals
    grad = grad_NxC.astype(mean_N.dtype)
    normal = (x_NxC.astype(mean_N.dtype) - mean_N[:, None]) * inverse_N[:, None]
    scaled = grad * scale_C[None]
    grad_x = (scaled - _row_mean(scaled)[:, None] - normal * _row_mean(scaled * normal)[:, None]) * inverse_N[:, None]
    grad_scale, grad_bias = jnp.sum(grad * normal, axis=0), jnp.sum(grad, axis=0)
    return grad_x.astype(x_NxC.dtype), grad_scale.astype(scale_C.dtype), grad_bias.astype(scale_C.dtype)


layer_norm.defvjp(_forward, _backward)

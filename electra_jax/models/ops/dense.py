"""The product of activations with a matrix of parameters."""

from functools import partial

import jax
import jax.numpy as jnp

from electra_jax.models.ops.precision import wide_type
from electra_jax.types import Array


@jax.custom_vjp
def product(x_NxC: Array, kernel_CxF: Array) -> Array:
    """x @ kernel, [N, F], in the type of x. The gradient of the kernel is in the kernel's own type: no sum is rounded to bfloat16.

    A kernel of another type is cast once, behind a barrier. Without it, XLA for TPUs casts the kernel within each product that
    reads it, a tile at a time, which takes longer than it saves (docs/speed.md).

    Where the product narrows (F below C), a CPU computes the kernel's gradient as (g^T x)^T, because the derived order x^T g runs at
    half the speed there; a barrier keeps XLA from turning it back.
    """
    return _forward(x_NxC, kernel_CxF)[0]


def _forward(x_NxC, kernel_CxF):
    narrow_CxF = kernel_CxF
    if kernel_CxF.dtype != x_NxC.dtype:
        narrow_CxF = jax.lax.optimization_barrier(kernel_CxF.astype(x_NxC.dtype))
    return x_NxC @ narrow_CxF, (x_NxC, narrow_CxF, kernel_CxF)


def _backward(residuals, grad_NxF):
    x_NxC, narrow_CxF, kernel_CxF = residuals  # the last for its type
    times = partial(jnp.matmul, preferred_element_type=kernel_CxF.dtype)

    def turned(x_NxC, grad_NxF):
        return jax.lax.optimization_barrier(times(grad_NxF.T, x_NxC)).T

    def derived(x_NxC, grad_NxF):
        return times(x_NxC.T, grad_NxF)

    if grad_NxF.shape[1] < x_NxC.shape[1]:
        grad_CxF = jax.lax.platform_dependent(x_NxC, grad_NxF, cpu=turned, default=derived)
    else:
        grad_CxF = derived(x_NxC, grad_NxF)
    return grad_NxF @ narrow_CxF.T, grad_CxF


product.defvjp(_forward, _backward)


@jax.custom_vjp
def wide_product(x_NxC: Array, kernel_CxF: Array) -> Array:
    """The same in at least float32: sums, result, and the result's gradient. For the few columns of logits, which bfloat16 would round
    before the loss sees them."""
    return _wide_forward(x_NxC, kernel_CxF)[0]


def _wide_forward(x_NxC, kernel_CxF):
    narrow_CxF = kernel_CxF.astype(x_NxC.dtype)
    return jnp.matmul(x_NxC, narrow_CxF, preferred_element_type=wide_type(x_NxC)), (x_NxC, narrow_CxF, kernel_CxF)


def _wide_backward(residuals, grad_NxF):
    x_NxC, narrow_CxF, kernel_CxF = residuals  # the last for its type
    wide = grad_NxF.dtype
    grad_x = (grad_NxF @ narrow_CxF.T.astype(wide)).astype(x_NxC.dtype)
    return grad_x, (x_NxC.T.astype(wide) @ grad_NxF).astype(kernel_CxF.dtype)


wide_product.defvjp(_wide_forward, _wide_backward)

"""The projection of hidden states onto the vocabulary, and the loss over it."""

import jax
import jax.numpy as jnp

from electra_jax.models.ops.dense import wide_product
from electra_jax.models.ops.precision import wide_type
from electra_jax.types import Array


def logits(x_SxE: Array, word_VxE: Array, bias_V: Array) -> Array:
    """[S, V], at least float32. The words are cast to the type of x; their gradient is not rounded to it."""
    return wide_product(x_SxE, word_VxE.T) + bias_V[None]


def _narrow(word_VxE: Array, x_SxE: Array) -> Array:
    """Cast once, behind a barrier (see ops/dense.py)."""
    return word_VxE if word_VxE.dtype == x_SxE.dtype else jax.lax.optimization_barrier(word_VxE.astype(x_SxE.dtype))


@jax.custom_vjp
def nll(x_SxE: Array, word_VxE: Array, bias_V: Array, targets_S: Array) -> tuple[Array, Array, Array, Array]:
    """(-log softmax(logits)[target] [S], the unnormalised probabilities [S, V], is the target the likeliest [S] bool, log of the sum of
    exp(logits) [S]).

    At least float32; the gradient of the words is in their own type. The probabilities are exp(logit - the row's largest), for sampling;
    no gradient flows through them. The backward pass multiplies them as they are, and normalises and corrects by the target on the side
    of [S, E]: only its two products read [S, V] again. The accuracy costs no argmax, because the largest logit is at hand
    (docs/speed.md).
    """
    return _forward(x_SxE, word_VxE, bias_V, targets_S)[0]


def _forward(x_SxE, word_VxE, bias_V, targets_S):
    narrow_VxE = _narrow(word_VxE, x_SxE)
    logits_SxV = jnp.einsum("se,ve->sv", x_SxE, narrow_VxE, preferred_element_type=wide_type(x_SxE)) + bias_V[None]
    best_S = jnp.max(logits_SxV, axis=1)
    target_S = jax.lax.platform_dependent(logits_SxV, targets_S, tpu=pick_by_sum, default=pick)
    mass_SxV = jnp.exp(logits_SxV - best_S[:, None])
    total_S = jnp.sum(mass_SxV, axis=1)
    log_total_S = jnp.log(total_S) + best_S
    out = log_total_S - target_S, mass_SxV, target_S >= best_S, log_total_S
    return out, (x_SxE, narrow_VxE, word_VxE, targets_S, mass_SxV, total_S)


BLOCK_LOGITS = 2**26  # logits that `nll_in_blocks` has in memory at a time, of each device's rows


def nll_in_blocks(x_SxE: Array, word_VxE: Array, bias_V: Array, targets_S: Array) -> tuple[Array, Array]:
    """The first and the last of what `nll` gives. Where S is so large that [S, V] should not be in memory: block after block, each computed
    again in the backward pass."""
    S, V = len(x_SxE), len(word_VxE)
    blocks = -(-S * V // BLOCK_LOGITS)
    if blocks == 1:
        nll_S, _, right_S, _ = nll(x_SxE, word_VxE, bias_V, targets_S)
        return nll_S, right_S
    size = -(-S // blocks)

    def cut(x):
        return jnp.pad(x, ((0, blocks * size - S), *((0, 0),) * (x.ndim - 1))).reshape(blocks, size, *x.shape[1:])

    @jax.checkpoint
    def block(inputs):
        nll_s, _, right_s, _ = nll(inputs[0], word_VxE, bias_V, inputs[1])
        return nll_s, right_s

    nll_bxs, right_bxs = jax.lax.map(block, (cut(x_SxE), cut(targets_S)))
    return nll_bxs.reshape(-1)[:S], right_bxs.reshape(-1)[:S]


def pick(logits_SxV: Array, targets_S: Array) -> Array:
    """[S]: each row's logit of its target."""
    return jnp.take_along_axis(logits_SxV, targets_S[:, None], axis=1)[:, 0]


def pick_by_sum(logits_SxV: Array, targets_S: Array) -> Array:
    """The same for TPUs, where a look-up copies all logits."""
    return jnp.sum(jnp.where(targets_S[:, None] == jnp.arange(logits_SxV.shape[1])[None], logits_SxV, 0), axis=1)


def _backward(residuals, grads):
    x_SxE, narrow_VxE, word_VxE, targets_S, mass_SxV, total_S = residuals  # word_VxE for its type
    grad_S, dtype, wide = grads[0], x_SxE.dtype, total_S.dtype
    share_S = (grad_S + grads[3]) / total_S
    x_wide = x_SxE.astype(wide)
    mass_narrow = mass_SxV.astype(dtype)
    expected_SxE = jnp.einsum("sv,ve->se", mass_narrow, narrow_VxE, preferred_element_type=wide)
    grad_x = expected_SxE * share_S[:, None] - narrow_VxE[targets_S].astype(wide) * grad_S[:, None]
    grad_word = jnp.einsum("sv,se->ve", mass_narrow, (x_wide * share_S[:, None]).astype(dtype), preferred_element_type=wide)
    grad_word = grad_word.at[targets_S].add(-x_wide * grad_S[:, None])
    grad_bias = (share_S @ mass_SxV).at[targets_S].add(-grad_S)
    return grad_x.astype(dtype), grad_word.astype(word_VxE.dtype), grad_bias, None


nll.defvjp(_forward, _backward)

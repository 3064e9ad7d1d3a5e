"""Attention as XLA's own operations: the scores are written to memory. It runs everywhere, and is the only path with
dropout on attention weights."""

from electra_jax.models.attention import Path
from electra_jax.models.attention.projection import project
from electra_jax.models.ops.attention import attention


def _refuses(network, length, platform):
    return None


def _apply(x_NxH, kernels, biases, batch, seeds_Bx2, config):
    q, k, v = project(x_NxH, kernels, biases, batch, config)
    return attention(q, k, v, batch.segments, seeds_Bx2, config.attention_dropout).reshape(x_NxH.shape)


PATH = Path(_refuses, _apply)

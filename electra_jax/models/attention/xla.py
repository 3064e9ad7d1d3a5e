"""Attention as XLA's own operations: the scores are written to memory. It runs everywhere, and is the only path with
dropout on attention weights."""

from electra_jax.models.attention import Path
from electra_jax.models.attention.projection import project
from electra_jax.models.ops.attention import attention
from electra_jax.types import DirectedBatch


def _refuses(network, length, platform):
    return None


def _apply(x_NxH, kernels, biases, batch, seeds_Bx2, config):
    direction = batch.direction if isinstance(batch, DirectedBatch) else None
    q, k, v = project(x_NxH, kernels, biases, batch, config)
    return attention(q, k, v, batch.segments, seeds_Bx2, config.attention_dropout, direction).reshape(x_NxH.shape)


PATH = Path(_refuses, _apply, directed=True)

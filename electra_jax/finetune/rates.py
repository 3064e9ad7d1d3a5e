"""Layer-wise learning rates: the nearer a layer is to the input, the smaller (google-research/electra `model/optimization.py`,
_get_layer_lrs)."""

import dataclasses

from electra_jax.finetune.config import FinetuneConfig
from electra_jax.train.config import OptimizerConfig


def by_layer(optimizer: OptimizerConfig, config: FinetuneConfig, network: str, num_layers: int) -> OptimizerConfig:
    """The optimizer with a factor on the learning rate for each part of the encoder. With n layers, the last layer's factor is the decay,
    the first layer's the decay to the power of n, and that of the embeddings and their projection the decay to the power of n + 1. The
    head's factor is 1. Factors that the optimizer has already take precedence.

    pooler_slot, as published: all powers but the head's are higher by one, because a layer is counted for a pooler that ELECTRA has not.
    """
    decay, more = config.layer_decay, 1 if config.pooler_slot else 0
    if decay == 1.0:
        return optimizer
    layers = tuple(decay ** (num_layers - layer + more) for layer in range(num_layers))
    factors = ((rf"^{network}/layers/", layers), (rf"^(embeddings|{network}/project)/", decay ** (num_layers + 1 + more)))
    return dataclasses.replace(optimizer, rates=(*optimizer.rates, *factors))

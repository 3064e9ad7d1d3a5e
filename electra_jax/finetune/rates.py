"""Layer-wise learning rates: the nearer to the text, the smaller (google-research/electra `model/optimization.py`, _get_layer_lrs)."""

import dataclasses

from electra_jax.finetune.config import FinetuneConfig
from electra_jax.train.config import OptimizerConfig


def by_layer(optimizer: OptimizerConfig, config: FinetuneConfig, network: str, num_layers: int) -> OptimizerConfig:
    """The optimizer with a factor for each part of the encoder: of n layers the last has the decay once, the first n times, and the
    embeddings and their projection n + 1 times; the head has none. Rates that the optimizer has already come first.

    pooler_slot, as published: one time more for all but the head, because a layer is counted for a pooler that ELECTRA has not.
    """
    decay, more = config.layer_decay, 1 if config.pooler_slot else 0
    if decay == 1.0:
        return optimizer
    layers = tuple(decay ** (num_layers - layer + more) for layer in range(num_layers))
    factors = ((rf"^{network}/layers/", layers), (rf"^(embeddings|{network}/project)/", decay ** (num_layers + 1 + more)))
    return dataclasses.replace(optimizer, rates=(*optimizer.rates, *factors))

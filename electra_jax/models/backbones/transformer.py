"""The published backbone: equal post-LayerNorm transformer layers (google-research/electra `model/modeling.py`)."""

import flax.linen as nn

from electra_jax import rng
from electra_jax.models.backbones import stack
from electra_jax.models.config import EncoderConfig
from electra_jax.models.layers import FeedForward, LayerNorm, SelfAttention
from electra_jax.types import Array, Batch

# The places of dropout within a layer (see rng.site_seeds).
ATTENTION_WEIGHTS, ATTENTION_OUTPUT, FFN_OUTPUT = 1, 2, 3


class Block(nn.Module):
    """One layer. `seeds_Bx2` None switches dropout off; `layer`, its number, may be traced."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_NxH: Array, batch: Batch, seeds_Bx2: Array | None, layer: Array | int) -> Array:
        config = self.config

        def drop(y: Array, place: int) -> Array:
            if seeds_Bx2 is None or not config.dropout:
                return y
            return rng.dropout(y, rng.site_seeds(seeds_Bx2, layer, place), config.dropout)

        def norm(name: str) -> LayerNorm:
            return LayerNorm(config.layer_norm_eps, config.param_dtype, name=name)

        weights_seeds = None if seeds_Bx2 is None else rng.site_seeds(seeds_Bx2, layer, ATTENTION_WEIGHTS)
        y = SelfAttention(config, name="attention")(x_NxH, batch, weights_seeds)
        x_NxH = norm("attention_norm")(x_NxH + drop(y, ATTENTION_OUTPUT))
        y = FeedForward(config, name="ffn")(x_NxH)
        return norm("ffn_norm")(x_NxH + drop(y, FFN_OUTPUT))


def _num_params(config: EncoderConfig) -> int:
    h, f = config.hidden_size, config.ffn_size
    return 4 * (h * h + h) + (h * f + f) + (f * h + h) + 4 * h


def _flops(config: EncoderConfig, length: int) -> int:
    h, f = config.hidden_size, config.ffn_size
    return 2 * length * (4 * h * h + 2 * h * f) + 4 * length * length * h


KIND = stack.Kind(Block, _num_params, _flops)
BACKBONE = stack.backbone({"layers": KIND}, lambda config: ("layers",) * config.num_layers)

"""A backbone of two kinds of layers in turn: the published one, and one that looks at each token alone."""

import flax.linen as nn

from electra_jax.models.backbones import stack, transformer
from electra_jax.models.config import EncoderConfig
from electra_jax.models.layers import FeedForward, LayerNorm


class TokenBlock(nn.Module):
    config: EncoderConfig

    @nn.compact
    def __call__(self, x_NxH, batch, seeds_Bx2, layer):
        y = FeedForward(self.config, name="ffn")(x_NxH)
        return LayerNorm(self.config.layer_norm_eps, self.config.param_dtype, name="ffn_norm")(x_NxH + y)


def _num_params(config: EncoderConfig) -> int:
    h, f = config.hidden_size, config.ffn_size
    return h * f + f + f * h + h + 2 * h


def _flops(config: EncoderConfig, length: int) -> int:
    return 4 * length * config.hidden_size * config.ffn_size


def _pattern(config: EncoderConfig) -> tuple[str, ...]:
    return tuple(("attention_layers", "token_layers")[place % 2] for place in range(config.num_layers))


KINDS = {"attention_layers": transformer.KIND, "token_layers": stack.Kind(TokenBlock, _num_params, _flops)}
BACKBONE = stack.backbone(KINDS, _pattern)

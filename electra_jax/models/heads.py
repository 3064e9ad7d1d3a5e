"""What turns hidden states into predictions.

The pretraining heads: google-research/electra `run_pretraining.py`. The tasks' heads have the shapes of transformers
`models/electra/modeling_electra.py`, so that what was fine-tuned there opens here.
"""

import flax.linen as nn
import jax.numpy as jnp

from electra_jax.models.config import EncoderConfig
from electra_jax.models.layers import Dense, LayerNorm, glorot_dense
from electra_jax.models.ops.gelu import gelu
from electra_jax.types import Array


class MLMHead(nn.Module):
    """Hidden [S, H] -> ([S, E], bias [V]): dense, GELU, LayerNorm. The rest of the way is ops/vocabulary.py."""

    config: EncoderConfig
    vocab_size: int

    @nn.compact
    def __call__(self, x_SxH: Array) -> tuple[Array, Array]:
        config = self.config
        bias_V = self.param("bias", nn.initializers.zeros, (self.vocab_size,), jnp.dtype(config.param_dtype))
        x_SxE = gelu(Dense(config, config.embedding_size, name="dense")(x_SxH))
        return LayerNorm(config.layer_norm_eps, config.param_dtype, name="norm")(x_SxE), bias_V


class RTDHead(nn.Module):
    """Hidden [N, H] -> one logit a token [N], at least float32; positive means replaced. The last layer is Glorot uniform."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_NxH: Array) -> Array:
        x_NxH = gelu(Dense(self.config, self.config.hidden_size, name="dense")(x_NxH))
        return glorot_dense(self.config, 1, "out", is_logits=True)(x_NxH)[:, 0]


class SequenceHead(nn.Module):
    """Hidden states of the first tokens [B, H] -> logits [B, labels]: dense, GELU, out."""

    config: EncoderConfig
    num_labels: int

    @nn.compact
    def __call__(self, x_BxH: Array) -> Array:
        x_BxH = gelu(Dense(self.config, self.config.hidden_size, name="dense")(x_BxH))
        return Dense(self.config, self.num_labels, is_logits=True, name="out")(x_BxH)


class TokenHead(nn.Module):
    """Hidden states [N, H] -> logits [N, labels]; of a span: two labels, its start and its end."""

    config: EncoderConfig
    num_labels: int

    @nn.compact
    def __call__(self, x_NxH: Array) -> Array:
        return Dense(self.config, self.num_labels, is_logits=True, name="out")(x_NxH)


# A task's head lies in params under the task's name, beside the networks.
TASKS = {"sequence_classification": SequenceHead, "token_classification": TokenHead, "question_answering": TokenHead}

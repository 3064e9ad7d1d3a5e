"""What turns hidden states into predictions. (google-research/electra `run_pretraining.py`.)"""

import flax.linen as nn
import jax.numpy as jnp

from electra_jax.config import EncoderConfig
from electra_jax.models.layers import LayerNorm, dense, gelu, glorot_dense
from electra_jax.types import Array


class MLMHead(nn.Module):
    """Hidden [S, H] -> vocabulary logits [S, V], at least float32: dense, GELU, LayerNorm, the word table's transpose, bias."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_SxH: Array, word_VxE: Array) -> Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        bias_V = self.param("bias", nn.initializers.zeros, word_VxE.shape[:1], jnp.dtype(config.param_dtype))
        x_SxE = gelu(dense(config, config.embedding_size, "dense")(x_SxH))
        x_SxE = LayerNorm(config.layer_norm_eps, config.param_dtype, name="norm")(x_SxE)
        wide = jnp.promote_types(dtype, jnp.float32)
        logits_SxV = jnp.einsum("se,ve->sv", x_SxE, word_VxE.astype(dtype), preferred_element_type=wide)
        return logits_SxV + bias_V[None]


class RTDHead(nn.Module):
    """Hidden [N, H] -> one logit a token [N], at least float32; positive means replaced. The last layer is Glorot uniform."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_NxH: Array) -> Array:
        x_NxH = gelu(dense(self.config, self.config.hidden_size, "dense")(x_NxH))
        logits_Nx1 = glorot_dense(self.config, 1, "out")(x_NxH)
        return logits_Nx1[:, 0].astype(jnp.promote_types(logits_Nx1.dtype, jnp.float32))

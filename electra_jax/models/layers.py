"""The parts that layers, embeddings and heads are made of. Backbones (backbones/) put them together.

Architecture: google-research/electra `model/modeling.py`: exact GELU, LayerNorm epsilon 1e-12, weights drawn from a normal truncated
at two deviations of 0.02. Activations are [B x L, H] outside attention, because XLA's code for CPUs is slower on three axes.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.typing import Initializer

from electra_jax.models import attention
from electra_jax.models.config import ElectraConfig, EncoderConfig
from electra_jax.models.ops.dense import product, wide_product
from electra_jax.models.ops.gelu import gelu
from electra_jax.models.ops.layer_norm import layer_norm
from electra_jax.models.ops.precision import wide_type
from electra_jax.types import Array, Batch


def truncated_normal(std: float):
    """TensorFlow's `truncated_normal_initializer`: cut at two deviations, not rescaled to keep the deviation."""
    return nn.initializers.truncated_normal(std, lower=-2.0, upper=2.0)


def sinusoids(amplitude: float = 0.2):
    """Learned positions that start as sinusoids (arXiv 1706.03762, 3.5): attention can find "the word before" from the first step."""

    def init(key, shape, dtype):
        length, width = shape
        angle = np.arange(length)[:, None] * 10000.0 ** (-(np.arange(width) // 2 * 2) / width)
        return jnp.asarray(amplitude * np.where(np.arange(width) % 2, np.cos(angle), np.sin(angle)), dtype)

    return init


class LayerNorm(nn.Module):
    """Over the last axis, in at least float32, returned in the input's type."""

    epsilon: float
    param_dtype: str

    @nn.compact
    def __call__(self, x_NxC: Array) -> Array:
        width = x_NxC.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,), jnp.dtype(self.param_dtype))
        bias = self.param("bias", nn.initializers.zeros, (width,), jnp.dtype(self.param_dtype))
        return layer_norm(x_NxC, scale, bias, self.epsilon)


class Weights(nn.Module):
    """The parameters of an affine map, for a caller that multiplies: (kernel [C, features], bias [features]), in the type of parameters."""

    config: EncoderConfig
    features: int
    kernel_init: Initializer | None = None  # None: a truncated normal

    @nn.compact
    def __call__(self, width: int) -> tuple[Array, Array]:
        init, param_dtype = self.kernel_init or truncated_normal(self.config.init_std), jnp.dtype(self.config.param_dtype)
        kernel = self.param("kernel", init, (width, self.features), param_dtype)
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,), param_dtype)


class Dense(Weights):
    """x @ kernel + bias of x [N, C]: [N, features] in the type of products; with `is_logits`, in at least float32."""

    is_logits: bool = False

    @nn.compact
    def __call__(self, x_NxC: Array) -> Array:
        kernel, bias = super().__call__(x_NxC.shape[1])
        x_NxC = x_NxC.astype(self.config.dtype)
        is_rounded = self.is_logits and x_NxC.dtype != wide_type(x_NxC)
        y_NxF = (wide_product if is_rounded else product)(x_NxC, kernel)
        return y_NxF + bias.astype(y_NxF.dtype)[None]


def glorot_dense(config: EncoderConfig, features: int, name: str, is_logits: bool = False) -> Dense:
    """For the dense layers to which the published code passes no initializer: TensorFlow's default is Glorot uniform."""
    return Dense(config, features, nn.initializers.glorot_uniform(), is_logits, name=name)


class Embeddings(nn.Module):
    """Word + position + type, LayerNorm, [B x L, E]. All of it is shared by a model's networks."""

    config: ElectraConfig

    @nn.compact
    def __call__(self, batch: Batch) -> Array:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        normal, param_dtype = truncated_normal(config.init_std), jnp.dtype(config.param_dtype)
        word_VxE = self.param("word", normal, (config.vocab_size, config.embedding_size), param_dtype)
        type_TxE = self.param("type", normal, (config.type_vocab_size, config.embedding_size), param_dtype)
        x = word_VxE[batch.tokens.reshape(-1)] + type_TxE[batch.types.reshape(-1)]
        if config.positions != "rotary":
            init = sinusoids() if config.positions == "sinusoidal_init" else normal
            position_PxE = self.param("position", init, (config.max_length, config.embedding_size), param_dtype)
            # Past the table's end it is NaN and not what stands last there, which would be nonsense that nobody sees.
            x = x + jnp.asarray(position_PxE).at[batch.positions.reshape(-1)].get(mode="fill", fill_value=np.nan)
        return LayerNorm(config.layer_norm_eps, config.param_dtype, name="norm")(x).astype(dtype)


class SelfAttention(nn.Module):
    """[N, H] -> [N, H]: query, key and value, the path that `config.attention` names, and the output projection."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_NxH: Array, batch: Batch, seeds_Bx2: Array | None) -> Array:
        config, width = self.config, self.config.hidden_size
        kernels, biases = zip(*(Weights(config, width, name=name)(width) for name in ("query", "key", "value")), strict=True)
        y_NxH = attention.path(config.attention).apply(x_NxH, kernels, biases, batch, seeds_Bx2, config)
        return Dense(config, width, name="output")(y_NxH)


class FeedForward(nn.Module):
    """[N, H] -> [N, H]: dense, GELU, dense."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_NxH: Array) -> Array:
        x_NxF = gelu(Dense(self.config, self.config.ffn_size, name="intermediate")(x_NxH))
        return Dense(self.config, self.config.hidden_size, name="output")(x_NxF)

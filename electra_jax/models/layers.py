"""The parts of a transformer layer. Activations are [B x L, H] outside attention: XLA's CPU code for three axes is slower.

Architecture: google-research/electra `model/modeling.py`: post-LayerNorm, exact GELU, LayerNorm epsilon 1e-12, weights drawn
from a normal truncated at two deviations of 0.02.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.typing import Initializer

from electra_jax import rng
from electra_jax.models import attention, backward
from electra_jax.models.config import ElectraConfig, EncoderConfig
from electra_jax.types import Array, Batch

# The dropout sites of a layer (see rng.site_seeds). Embeddings use layer 0's own number; layers count from 1.
EMBEDDED, ATTENTION_WEIGHTS, ATTENTION_OUTPUT, FFN_OUTPUT = range(4)


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
        return backward.layer_norm(x_NxC, scale, bias, self.epsilon)


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
    """x @ kernel + bias of x [N, C]: [N, features] in the type of products."""

    @nn.compact
    def __call__(self, x_NxC: Array) -> Array:
        kernel, bias = super().__call__(x_NxC.shape[1])
        x_NxC = x_NxC.astype(self.config.dtype)
        return backward.product(x_NxC, kernel) + bias.astype(x_NxC.dtype)[None]


def glorot_dense(config: EncoderConfig, features: int, name: str) -> Dense:
    """For the dense layers to which the published code passes no initializer: TensorFlow's default is Glorot uniform."""
    return Dense(config, features, nn.initializers.glorot_uniform(), name=name)


class Embeddings(nn.Module):
    """Word + position + type, LayerNorm, [B x L, E]. All of it is shared by generator and discriminator."""

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
            x = x + position_PxE[batch.positions.reshape(-1)]
        return LayerNorm(config.layer_norm_eps, config.param_dtype, name="norm")(x).astype(dtype)


class SelfAttention(nn.Module):
    config: EncoderConfig

    @nn.compact
    def __call__(self, x_NxH: Array, batch: Batch, seeds_Bx2: Array | None) -> Array:
        config = self.config
        rows, width = batch.segments.shape, config.hidden_size
        kernels, biases = zip(*(Weights(config, width, name=name)(width) for name in ("query", "key", "value")), strict=True)
        if config.attention == "rows":
            products = [backward.product(x_NxH, kernel).reshape(*rows, -1) for kernel in kernels]
            y = attention.rows(products, biases, batch.segments, config.head_size)
        else:
            # One product of all three: 1% of a step of `small` on a CPU.
            qkv_Nx3H = backward.product(x_NxH, jnp.concatenate(kernels, axis=1)) + jnp.concatenate(biases).astype(x_NxH.dtype)[None]
            q, k, v = (x.reshape(*rows, config.num_heads, config.head_size) for x in jnp.split(qkv_Nx3H, 3, axis=1))
            if config.positions == "rotary":
                q, k = attention.rotate(q, batch.positions), attention.rotate(k, batch.positions)
            y = attention.attend(q, k, v, batch.segments, seeds_Bx2, config.attention_dropout, config.attention)
        return Dense(config, width, name="output")(y.reshape(x_NxH.shape))


class FeedForward(nn.Module):
    config: EncoderConfig

    @nn.compact
    def __call__(self, x_NxH: Array) -> Array:
        x_NxF = backward.gelu(Dense(self.config, self.config.ffn_size, name="intermediate")(x_NxH))
        return Dense(self.config, self.config.hidden_size, name="output")(x_NxF)


class Block(nn.Module):
    """One post-LayerNorm layer. `seeds_Bx2` None switches dropout off; `layer` may be traced."""

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

"""What turns hidden states into predictions.

The pretraining heads: google-research/electra `run_pretraining.py`. Of the tasks' heads, "classification" and "joint_answer" are the
published ones (google-research/electra `finetune/`); the others have the shapes of transformers `models/electra/modeling_electra.py`, so
that what was fine-tuned there opens here. The last layers begin as the published code's: Glorot uniform, biases of zero.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from electra_jax.models.config import EncoderConfig
from electra_jax.models.layers import Dense, LayerNorm, Weights, glorot_dense
from electra_jax.models.ops.dense import product
from electra_jax.models.ops.gelu import gelu
from electra_jax.types import Array

Drop = Callable[[Array, int], Array]  # (x [B, H], the number of the place in the head) -> x after dropout


def no_drop(x_BxH: Array, place: int) -> Array:
    return x_BxH


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


class TiedHead(nn.Module):
    """Hidden [S, H] -> ([S, E], bias [V]): the hidden states as they are, or projected where they have another width than the words
    (COCO-LM's corrective head, microsoft/COCO-LM `fairseq/models/cocolm/model.py`, where the widths are one)."""

    config: EncoderConfig
    vocab_size: int

    @nn.compact
    def __call__(self, x_SxH: Array) -> tuple[Array, Array]:
        config = self.config
        bias_V = self.param("bias", nn.initializers.zeros, (self.vocab_size,), jnp.dtype(config.param_dtype))
        return Dense(config, config.embedding_size, name="project")(x_SxH) if config.projects else x_SxH, bias_V


class RTDHead(nn.Module):
    """Hidden [N, H] -> one logit a token [N], at least float32; positive means replaced. The last layer is Glorot uniform."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x_NxH: Array) -> Array:
        x_NxH = gelu(Dense(self.config, self.config.hidden_size, name="dense")(x_NxH))
        return glorot_dense(self.config, 1, "out", is_logits=True)(x_NxH)[:, 0]


class ClassificationHead(nn.Module):
    """Hidden states of the first tokens [B, H] -> logits [B, labels], at least float32. Published: `classification_tasks.py`, which drops
    out of its input while it trains: drop(x, 0) does."""

    config: EncoderConfig
    num_labels: int

    @nn.compact
    def __call__(self, x_BxH: Array, drop: Drop = no_drop) -> Array:
        return glorot_dense(self.config, self.num_labels, "out", is_logits=True)(drop(x_BxH, 0))


class SequenceHead(nn.Module):
    """Hidden states of the first tokens [B, H] -> logits [B, labels]: dropout, dense, GELU, dropout, out (transformers
    `ElectraClassificationHead` and `RoFormerClassificationHead`)."""

    config: EncoderConfig
    num_labels: int

    @nn.compact
    def __call__(self, x_BxH: Array, drop: Drop = no_drop) -> Array:
        x_BxH = gelu(Dense(self.config, self.config.hidden_size, name="dense")(drop(x_BxH, 0)))
        return glorot_dense(self.config, self.num_labels, "out", is_logits=True)(drop(x_BxH, 1))


class TokenHead(nn.Module):
    """Hidden states [N, H] -> logits [N, labels]; of an answer: two labels, its start and its end."""

    config: EncoderConfig
    num_labels: int

    @nn.compact
    def __call__(self, x_NxH: Array) -> Array:
        return glorot_dense(self.config, self.num_labels, "out", is_logits=True)(x_NxH)


class JointAnswerHead(nn.Module):
    """Where an answer begins; where it ends, given where it begins; and whether there is none (XLNet's head, arXiv 1906.08237, as in
    google-research/electra `qa_tasks.py`, whose hidden layers are 512 wide). Logits in at least float32.

    __call__(x [B, L, H], allowed [B, L] bool, choose) -> (start logits [B, L], starts [B, S], end logits [B, S, L], no-answer logit [B]).
    Elsewhere than `allowed` a logit is lowered by 1,000. choose(start logits) -> starts, int32 [B, S]: the true one while training, the
    most likely ones afterwards. The last logit is a function of the first token and of the mean of all tokens under the start's softmax.
    """

    config: EncoderConfig
    num_labels: int  # 2, as other heads of answers have; none of this one's sizes follows from it

    WIDTH = 512

    @nn.compact
    def __call__(self, x_BxLxH: Array, allowed_BxL: Array, choose: Callable[[Array], Array]) -> tuple[Array, Array, Array, Array]:
        B, L, H = x_BxLxH.shape
        config, flat = self.config, lambda x: x.reshape(-1, x.shape[-1])
        forbidden_BxL = 1000.0 * (allowed_BxL.astype(jnp.float32) - 1.0)
        start_BxL = glorot_dense(config, 1, "start", is_logits=True)(flat(x_BxLxH)).reshape(B, L) + forbidden_BxL
        starts_BxS = choose(start_BxL)

        # dense([h_start; h_i]) is a sum of two products, so that neither is computed for every pair of start and end.
        kernel_2HxW, bias_W = Weights(config, self.WIDTH, nn.initializers.glorot_uniform(), name="end_hidden")(2 * H)
        x_start_BxSxH = jnp.take_along_axis(x_BxLxH, starts_BxS[..., None], axis=1)
        of_start_BxSxW = product(flat(x_start_BxSxH), kernel_2HxW[:H]).reshape(B, -1, self.WIDTH)
        of_end_NxW = product(flat(x_BxLxH), kernel_2HxW[H:]) + bias_W.astype(x_BxLxH.dtype)[None]
        hidden = gelu(flat(of_start_BxSxW[:, :, None] + of_end_NxW.reshape(B, 1, L, self.WIDTH)))
        end_BxSxL = glorot_dense(config, 1, "end", is_logits=True)(hidden).reshape(B, -1, L) + forbidden_BxL[:, None]

        share_BxL = nn.softmax(start_BxL)
        mean_BxH = jnp.einsum("bl,blh->bh", share_BxL, x_BxLxH.astype(share_BxL.dtype)).astype(x_BxLxH.dtype)
        both = jnp.concatenate([x_BxLxH[:, 0], mean_BxH], axis=-1)
        hidden_BxW = gelu(glorot_dense(config, self.WIDTH, "no_answer_hidden")(both))
        return start_BxL, starts_BxS, end_BxSxL, glorot_dense(config, 1, "no_answer", is_logits=True)(hidden_BxW)[:, 0]


# Heads of pretraining lie in params within their network: "head", and "lm_head" where a discriminator has one over the vocabulary too.
PRETRAINING = {
    "mlm": MLMHead,
    "tied": TiedHead,
    "rtd": lambda config, vocab_size: RTDHead(config),
}
NAMES = ("head", "lm_head")
# A task's head lies in params under the task's name, beside the networks.
TASKS = {
    "classification": ClassificationHead,
    "sequence_classification": SequenceHead,
    "token_classification": TokenHead,
    "question_answering": TokenHead,
    "joint_answer": JointAnswerHead,
}
OF_FIRST_TOKEN = ("classification", "sequence_classification")

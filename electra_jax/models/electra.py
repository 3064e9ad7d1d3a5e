"""ELECTRA's two networks as pure functions (arXiv 2003.10555, section 2).

params = {"embeddings": shared by both, LayerNorm and positions too,
          "generator": {"project", "layers", "head"}, "discriminator": {"project", "layers", "head"}}
and, of a fine-tuned one, the task's head under the task's name (heads.TASKS).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from electra_jax.models import backward, heads, layers
from electra_jax.models.backbones import transformer as encoder
from electra_jax.models.config import ElectraConfig
from electra_jax.parallel import sharding
from electra_jax.types import Array, Batch, Params


def init_params(key: Array, config: ElectraConfig) -> Params:
    """Parameters in `config.param_dtype`, plain nested dicts. Jittable, so that a sharded state is born sharded."""
    keys = dict(zip(("embeddings", "generator", "mlm", "discriminator", "rtd"), jax.random.split(key, 5), strict=True))
    token = jnp.zeros((1, 1), jnp.int32)
    batch = Batch(tokens=token, segments=token, positions=token, types=token, row=token[0])
    dtype = jnp.dtype(config.dtype)
    embeddings = layers.Embeddings(config).init(keys["embeddings"], batch)["params"]
    generator, discriminator = config.generator, config.discriminator
    mlm_head = heads.MLMHead(generator, config.vocab_size).init(keys["mlm"], jnp.zeros((1, generator.hidden_size), dtype))
    rtd_head = heads.RTDHead(discriminator).init(keys["rtd"], jnp.zeros((1, discriminator.hidden_size), dtype))
    return {
        "embeddings": embeddings,
        "generator": {**encoder.init(keys["generator"], generator), "head": mlm_head["params"]},
        "discriminator": {**encoder.init(keys["discriminator"], discriminator), "head": rtd_head["params"]},
    }


def hidden_states(params: Params, config: ElectraConfig, network: str, batch: Batch, seeds_Bx2: Array | None = None) -> Array:
    """[B x L, H]: the last layer of `network` ("generator" or "discriminator")."""
    embed = sharding.on_rows(lambda params, batch: layers.Embeddings(config).apply({"params": params}, batch))
    embedded_NxE = embed(params["embeddings"], batch)
    return encoder.apply(params[network], getattr(config, network), embedded_NxE, batch, seeds_Bx2)


def generator_apply(params: Params, config: ElectraConfig, batch: Batch, slots_BxK: Array, seeds_Bx2: Array | None = None) -> Array:
    """Vocabulary logits [B, K, V] at the positions `slots_BxK` of rows whose chosen tokens are masked."""
    return _at_slots(backward.vocabulary_logits, params, config, batch, slots_BxK, seeds_Bx2)


def generator_nll(
    params: Params, config: ElectraConfig, batch: Batch, slots_BxK: Array, targets_BxK: Array, seeds_Bx2: Array | None = None
) -> tuple[Array, Array, Array]:
    """Of the same logits: (-log probability of the target [B, K], unnormalised probabilities [B, K, V], is it the likeliest [B, K])."""
    return _at_slots(backward.vocabulary_nll, params, config, batch, slots_BxK, seeds_Bx2, targets_BxK)


def _at_slots(function: Callable, params: Params, config: ElectraConfig, batch: Batch, slots_BxK: Array, seeds_Bx2: Array | None, *more):
    """function(x [S, E], words [V, E], bias [V], *more [S]) of the generator's head at the slots, each result [S, ..] as [B, K, ..].

    Only the slots are projected onto the vocabulary: at 15% masked, projecting every position costs 13 to 28% of a step.
    """
    x_NxH = hidden_states(params, config, "generator", batch, seeds_Bx2)
    B, L = batch.tokens.shape
    # Row by row, so that a batch which is cut by rows stays so.
    x_BxKxH = jax.vmap(lambda x_LxH, slots_K: x_LxH[slots_K])(x_NxH.reshape(B, L, -1), slots_BxK)

    @jax.named_scope("vocabulary")
    def head(params, x_BxKxH, *more_BxK):
        flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        x_SxE, bias_V = heads.MLMHead(config.generator, config.vocab_size).apply({"params": params["head"]}, flat(x_BxKxH))
        out = function(x_SxE, params["word"].astype(x_SxE.dtype), bias_V, *map(flat, more_BxK))
        return jax.tree.map(lambda y: y.reshape(*x_BxKxH.shape[:2], *y.shape[1:]), out)

    head_params = {"head": params["generator"]["head"], "word": params["embeddings"]["word"]}
    return sharding.rows(sharding.on_rows(head, config.dtype)(head_params, x_BxKxH, *more))


def discriminator_apply(params: Params, config: ElectraConfig, batch: Batch, seeds_Bx2: Array | None = None) -> Array:
    """Logits [B, L] that a token was replaced."""
    x_NxH = hidden_states(params, config, "discriminator", batch, seeds_Bx2)
    head = sharding.on_rows(lambda params, x: heads.RTDHead(config.discriminator).apply({"params": params}, x), config.dtype)
    logits_N = head(params["discriminator"]["head"], x_NxH)
    return logits_N.reshape(batch.tokens.shape)


def init_task(key: Array, config: ElectraConfig, task: str, num_labels: int) -> Params:
    """The head of one of heads.TASKS, on the discriminator."""
    x_1xH = jnp.zeros((1, config.hidden_size), jnp.dtype(config.dtype))
    return heads.TASKS[task](config.discriminator, num_labels).init(key, x_1xH)["params"]


def task_apply(params: Params, config: ElectraConfig, batch: Batch, task: str, seeds_Bx2: Array | None = None) -> Array:
    """Logits of one of heads.TASKS: [B, labels] from each row's first token, or [B, L, labels]; question answering: start and end."""
    x_NxH = hidden_states(params, config, "discriminator", batch, seeds_Bx2)
    B, L = batch.tokens.shape
    head = heads.TASKS[task](config.discriminator, params[task]["out"]["bias"].shape[0])
    if task == "sequence_classification":
        return head.apply({"params": params[task]}, x_NxH.reshape(B, L, -1)[:, 0])
    return head.apply({"params": params[task]}, x_NxH).reshape(B, L, -1)

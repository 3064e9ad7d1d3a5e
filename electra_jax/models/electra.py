"""Networks that share embeddings, as pure functions: ELECTRA's two (arXiv 2003.10555, section 2), or those that an objective names.

params = {"embeddings": shared by all networks, LayerNorm and positions too,
          "generator": {"project", "layers", "head"}, "discriminator": {"project", "layers", "head"}}
and, of a fine-tuned one, the task's head under the task's name (heads.TASKS).
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import rng
from electra_jax.cli import UserError
from electra_jax.models import heads, layers
from electra_jax.models.backbones import backbone
from electra_jax.models.config import ElectraConfig
from electra_jax.models.ops import vocabulary
from electra_jax.parallel import sharding
from electra_jax.types import Array, Batch, Params

HEAD = 1  # the first place of dropout in a task's head; as the embeddings', which is 0, it is in layer 0 (see rng.site_seeds)
NETWORKS: Mapping[str, str] = {"generator": "mlm", "discriminator": "rtd"}  # ELECTRA's, and each one's head


def init_params(key: Array, config: ElectraConfig, networks: Mapping[str, str | None] = NETWORKS) -> Params:
    """Parameters in `config.param_dtype`, plain nested dicts. Jittable, so that a sharded state is born sharded.

    networks: name -> head, "mlm", "rtd" or None. config.encoder(name) sizes them.
    """
    keys = iter(list(jax.random.split(key, 1 + 2 * len(networks))))
    token = jnp.zeros((1, 1), jnp.int32)
    batch = Batch(tokens=token, segments=token, positions=token, types=token, row=token[0])
    params = {"embeddings": layers.Embeddings(config).init(next(keys), batch)["params"]}
    network_keys, its_head = {}, {}
    for name, head in networks.items():
        network_keys[name], head_key = next(keys), next(keys)
        if head is not None:
            x_1xH = jnp.zeros((1, config.encoder(name).hidden_size), jnp.dtype(config.dtype))
            its_head[name] = {"head": _head(config, name, head).init(head_key, x_1xH)["params"]}
    for name in networks:
        network = backbone(config.backbone).init(network_keys[name], config.encoder(name))
        params[name] = {**network, **its_head.get(name, {})}
    return params


def _head(config: ElectraConfig, network: str, head: str):
    encoder = config.encoder(network)
    return heads.MLMHead(encoder, config.vocab_size) if head == "mlm" else heads.RTDHead(encoder)


def hidden_states(
    params: Params, config: ElectraConfig, batch: Batch, seeds_Bx2: Array | None = None, network: str = "discriminator"
) -> Array:
    """[B, L, H]: the last layer of `network`, a name in params. `seeds_Bx2` (uint32) switch dropout on."""
    return _encode(params, config, network, batch, seeds_Bx2).reshape(*batch.tokens.shape, -1)


def _encode(params: Params, config: ElectraConfig, network: str, batch: Batch, seeds_Bx2: Array | None) -> Array:
    """[B x L, H]: the same. UserError where params lack the network, or where a position is past the model's table."""
    if network not in params:
        has = ", ".join(name for name in params if name not in ("embeddings", *heads.TASKS)) or "none"
        raise UserError(f"the model has no network {network!r}: it has {has} (network=... names one)")
    if config.positions != "rotary" and not isinstance(batch.positions, jax.core.Tracer) and np.size(batch.positions):
        last = int(np.asarray(batch.positions).max())
        if last >= config.max_length:  # a table that is read past its end gives what stands last in it
            raise UserError(f"a position of the batch is {last} and the model has {config.max_length}: cut the rows")
    embed = sharding.on_rows(lambda params, batch: layers.Embeddings(config).apply({"params": params}, batch))
    embedded_NxE = embed(params["embeddings"], batch)
    return backbone(config.backbone).apply(params[network], config.encoder(network), embedded_NxE, batch, seeds_Bx2)


def _head_of(params: Params, network: str) -> Params:
    if "head" not in params[network]:
        raise UserError(f"the model's {network} has no head: hidden_states gives its last layer")
    return params[network]["head"]


def generator_apply(
    params: Params, config: ElectraConfig, batch: Batch, slots_BxK: Array, seeds_Bx2: Array | None = None, network: str = "generator"
) -> Array:
    """Vocabulary logits [B, K, V] at the positions `slots_BxK` of rows whose chosen tokens are masked.

    network: whose head is "mlm".
    """
    return _at_slots(vocabulary.logits, params, config, network, batch, slots_BxK, seeds_Bx2)


def generator_nll(
    params: Params,
    config: ElectraConfig,
    batch: Batch,
    slots_BxK: Array,
    targets_BxK: Array,
    seeds_Bx2: Array | None = None,
    network: str = "generator",
) -> tuple[Array, Array, Array]:
    """Of the same logits: (-log probability of the target [B, K], unnormalised probabilities [B, K, V], is it the likeliest [B, K])."""
    return _at_slots(vocabulary.nll, params, config, network, batch, slots_BxK, seeds_Bx2, targets_BxK)


def _at_slots(
    function: Callable,
    params: Params,
    config: ElectraConfig,
    network: str,
    batch: Batch,
    slots_BxK: Array,
    seeds_Bx2: Array | None,
    *more_BxK: Array,
):
    """function(x [S, E], words [V, E], bias [V], *more [S]) of the network's MLM head at the slots, each result [S, ..] as [B, K, ..].

    Only the slots are projected onto the vocabulary: projecting every position would cost a seventh to a quarter of a step
    (docs/speed.md).
    """
    x_NxH = _encode(params, config, network, batch, seeds_Bx2)
    B, L = batch.tokens.shape
    # Row by row, so that a batch which is cut by rows stays so.
    x_BxKxH = jax.vmap(lambda x_LxH, slots_K: x_LxH[slots_K])(x_NxH.reshape(B, L, -1), slots_BxK)

    @jax.named_scope("vocabulary")
    def head(params, x_BxKxH, *more_BxK):
        flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
        x_SxE, bias_V = _head(config, network, "mlm").apply({"params": params["head"]}, flat(x_BxKxH))
        out = function(x_SxE, params["word"], bias_V, *map(flat, more_BxK))
        return jax.tree.map(lambda y: y.reshape(*x_BxKxH.shape[:2], *y.shape[1:]), out)

    head_params = {"head": _head_of(params, network), "word": params["embeddings"]["word"]}
    # The words travel as they are stored, as they do for the embedding: cast before, their gradient would be rounded on its way back.
    return sharding.rows(sharding.on_rows(head)(head_params, x_BxKxH, *more_BxK))


def discriminator_apply(
    params: Params, config: ElectraConfig, batch: Batch, seeds_Bx2: Array | None = None, network: str = "discriminator"
) -> Array:
    """Logits [B, L] that a token was replaced. network: whose head is "rtd"."""
    x_NxH = _encode(params, config, network, batch, seeds_Bx2)
    head = sharding.on_rows(lambda params, x: _head(config, network, "rtd").apply({"params": params}, x), config.dtype)
    logits_N = head(_head_of(params, network), x_NxH)
    return logits_N.reshape(batch.tokens.shape)


def init_task(key: Array, config: ElectraConfig, task: str, num_labels: int, network: str = "discriminator") -> Params:
    """The head of one of heads.TASKS, on `network`."""
    encoder = config.encoder(network)
    head, H = heads.TASKS[task](encoder, num_labels), encoder.hidden_size
    if task == "joint_answer":
        x_1x1xH = jnp.zeros((1, 1, H), jnp.dtype(config.dtype))
        return head.init(key, x_1x1xH, jnp.ones((1, 1), bool), lambda logits: jnp.zeros((1, 1), jnp.int32))["params"]
    return head.init(key, jnp.zeros((1, H), jnp.dtype(config.dtype)))["params"]


def task_apply(
    params: Params, config: ElectraConfig, batch: Batch, task: str, seeds_Bx2: Array | None = None, network: str = "discriminator"
) -> Array:
    """Logits of one of heads.TASKS but "joint_answer": [B, labels] from each row's first token, or [B, L, labels]; question answering:
    start and end."""
    head, x_BxLxH = _of_task(params, config, batch, task, seeds_Bx2, network)
    if task not in heads.OF_FIRST_TOKEN:
        return head(x_BxLxH.reshape(-1, x_BxLxH.shape[-1])).reshape(*batch.tokens.shape, -1)
    rate = config.encoder(network).dropout
    if seeds_Bx2 is None or not rate:
        return head(x_BxLxH[:, 0])
    return head(x_BxLxH[:, 0], lambda x_BxH, place: rng.dropout(x_BxH, rng.site_seeds(seeds_Bx2, 0, HEAD + place), rate))


def answer_apply(
    params: Params,
    config: ElectraConfig,
    batch: Batch,
    allowed_BxL: Array,
    choose: Callable[[Array], Array],
    seeds_Bx2: Array | None = None,
    network: str = "discriminator",
) -> tuple[Array, Array, Array, Array]:
    """What heads.JointAnswerHead gives: start logits [B, L], starts [B, S], end logits [B, S, L], no-answer logit [B]."""
    head, x_BxLxH = _of_task(params, config, batch, "joint_answer", seeds_Bx2, network)
    return head(x_BxLxH, allowed_BxL, choose)


def _of_task(params: Params, config: ElectraConfig, batch: Batch, task: str, seeds_Bx2: Array | None, network: str):
    """(the task's head, [B, L, H] for it)."""
    if task not in params:
        has = ", ".join(name for name in params if name in heads.TASKS) or "none"
        raise UserError(f"the model has no head for {task!r}: it has {has}")
    last = params[task]["out"]["bias"].shape[0] if "out" in params[task] else 2
    head = partial(heads.TASKS[task](config.encoder(network), last).apply, {"params": params[task]})
    return head, hidden_states(params, config, batch, seeds_Bx2, network)

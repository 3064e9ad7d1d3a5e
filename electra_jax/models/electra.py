"""Networks that share embeddings, as pure functions: ELECTRA's two (arXiv 2003.10555, section 2), or those that an objective names.

params = {"embeddings": shared by all networks, LayerNorm and positions too,
          "generator": {"project", "layers", "head"}, "discriminator": {"project", "layers", "head"}}
and, of a fine-tuned one, the task's head under the task's name (heads.TASKS). Where `config.sharing` is another, sharing.py says what lies
where; the functions here see every model as above.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import rng
from electra_jax.cli import UserError
from electra_jax.models import heads, layers, sharing
from electra_jax.models.backbones import backbone
from electra_jax.models.config import ElectraConfig
from electra_jax.models.ops import vocabulary
from electra_jax.parallel import sharding
from electra_jax.types import Array, Batch, Params

HEAD = 1  # the first place of dropout in a task's head; as the embeddings', which is 0, it is in layer 0 (see rng.site_seeds)
Networks = Mapping[str, Mapping[str, str]]  # name of a network -> {name of a head in its params: which of heads.PRETRAINING it is}
NETWORKS: Networks = {"generator": {"head": "mlm"}, "discriminator": {"head": "rtd"}}  # ELECTRA's


def heads_of(params: Params) -> Networks:
    """Which networks and pretraining heads parameters have; where a head is not whole, what it most likely is."""

    def kind(network: str, key: str, head: Params) -> str:
        if key == "lm_head":
            return "mlm" if {"dense", "norm"} & head.keys() else "tied"
        return "mlm" if "out" not in head and (network.startswith("generator") or {"norm", "bias"} & head.keys()) else "rtd"

    networks = {name: tree for name, tree in params.items() if name != "embeddings" and name not in heads.TASKS}
    return {name: {key: kind(name, key, tree[key]) for key in heads.NAMES if key in tree} for name, tree in networks.items()}


def init_params(key: Array, config: ElectraConfig, networks: Networks = NETWORKS) -> Params:
    """Parameters in `config.param_dtype`, plain nested dicts. Jittable, so that a sharded state is born sharded.

    networks: which networks, with which heads. config.encoder(name) sizes them.
    """
    embeddings_key, *keys = jax.random.split(key, 1 + 2 * len(networks))
    params = {"embeddings": init_embeddings(embeddings_key, config)}
    for place, (name, of_network) in enumerate(networks.items()):
        network_key, head_key = keys[2 * place : 2 * place + 2]
        params[name] = dict(backbone(config.backbone).init(network_key, config.encoder(name)))
        for number, (head_name, head) in enumerate(of_network.items()):
            head_key = jax.random.fold_in(head_key, number) if number else head_key
            params[name][head_name] = init_head(head_key, config, name, head)
    return sharing.begun(params, config, partial(init_embeddings, jax.random.fold_in(embeddings_key, 1), config))


def init_embeddings(key: Array, config: ElectraConfig) -> Params:
    token = jnp.zeros((1, 1), jnp.int32)
    batch = Batch(tokens=token, segments=token, positions=token, types=token, row=token[0])
    return layers.Embeddings(config).init(key, batch)["params"]


def init_head(key: Array, config: ElectraConfig, network: str, head: str, width: int | None = None) -> Params:
    """width: of what the head is given, where it is not the network's own."""
    x_1xH = jnp.zeros((1, width or config.encoder(network).hidden_size), jnp.dtype(config.dtype))
    return _head(config, network, head).init(key, x_1xH)["params"]


def _head(config: ElectraConfig, network: str, head: str):
    return heads.PRETRAINING[head](config.encoder(network), config.vocab_size)


def hidden_states(
    params: Params, config: ElectraConfig, batch: Batch, seeds_Bx2: Array | None = None, network: str = "discriminator"
) -> Array:
    """[B, L, H]: the last layer of `network`, a name in params. `seeds_Bx2` (uint32) switch dropout on."""
    return _encode(params, config, network, batch, seeds_Bx2).reshape(*batch.tokens.shape, -1)


def each_layer(params: Params, config: ElectraConfig, batch: Batch, look: Callable[[Array], Any], network: str = "discriminator") -> Any:
    """look(states [B x L, H]) of what enters the first layer of `network` and of what each layer gives, stacked: [layers + 1, ..]."""
    _, looked = _encode(params, config, network, batch, None, look)
    return looked


def _encode(params: Params, config: ElectraConfig, network: str, batch: Batch, seeds_Bx2: Array | None, *look: Callable):
    """[B x L, H]: the same; with look, what Backbone.apply gives. UserError where params lack the network, or where a position is past
    the model's table."""
    if network not in params:
        has = ", ".join(name for name in params if name not in ("embeddings", *heads.TASKS)) or "none"
        raise UserError(f"the model has no network {network!r}: it has {has} (network=... names one)")
    if config.positions != "rotary" and not isinstance(batch.positions, jax.core.Tracer) and np.size(batch.positions):
        last = int(np.asarray(batch.positions).max())
        if last >= config.max_length:  # a table that is read past its end gives what stands last in it
            raise UserError(f"a position of the batch is {last} and the model has {config.max_length}: cut the rows")
    params = sharing.seen(params, config, network)
    embed = sharding.on_rows(lambda params, batch: layers.Embeddings(config).apply({"params": params}, batch))
    embedded_NxE = embed(params["embeddings"], batch)
    return backbone(config.backbone).apply(params[network], config.encoder(network), embedded_NxE, batch, seeds_Bx2, *look)


def generator_apply(
    params: Params, config: ElectraConfig, batch: Batch, slots_BxK: Array, seeds_Bx2: Array | None = None, network: str = "generator"
) -> Array:
    """Vocabulary logits [B, K, V] at the positions `slots_BxK` of rows whose chosen tokens are masked.

    network: whose head is "mlm".
    """
    return mlm_logits(params, config, hidden_states(params, config, batch, seeds_Bx2, network), slots_BxK, network)


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
    return mlm_nll(params, config, hidden_states(params, config, batch, seeds_Bx2, network), slots_BxK, targets_BxK, network)[:3]


def discriminator_apply(
    params: Params, config: ElectraConfig, batch: Batch, seeds_Bx2: Array | None = None, network: str = "discriminator"
) -> Array:
    """Logits [B, L] that a token was replaced. network: whose head is "rtd"."""
    return rtd_logits(params, config, hidden_states(params, config, batch, seeds_Bx2, network), network)


def rtd_logits(params: Params, config: ElectraConfig, x_BxLxH: Array, network: str = "discriminator", head: str = "head") -> Array:
    """One logit a token, [B, L], from the network's hidden states."""
    apply = sharding.on_rows(lambda params, x: _head(config, network, "rtd").apply({"params": params}, x), config.dtype)
    return apply(_head_of(params, network, head), _flat(x_BxLxH)).reshape(x_BxLxH.shape[:2])


def mlm_logits(
    params: Params, config: ElectraConfig, x_BxLxH: Array, slots_BxK: Array, network: str = "generator", head: str = "head"
) -> Array:
    """Vocabulary logits [B, K, V] from the network's hidden states at the slots. The head is "mlm" or "tied"."""
    return _vocabulary(vocabulary.logits, params, config, network, head, _at(x_BxLxH, slots_BxK))


def mlm_nll(
    params: Params,
    config: ElectraConfig,
    x_BxLxH: Array,
    slots_BxK: Array,
    targets_BxK: Array,
    network: str = "generator",
    head: str = "head",
) -> tuple[Array, Array, Array, Array]:
    """What generator_nll gives, from the network's hidden states, and the log of the sum of exp(logits) [B, K].

    Only the slots are projected onto the vocabulary: projecting every position would cost a seventh to a quarter of a step
    (docs/speed.md).
    """
    return _vocabulary(vocabulary.nll, params, config, network, head, _at(x_BxLxH, slots_BxK), targets_BxK)


def mlm_nll_everywhere(
    params: Params, config: ElectraConfig, x_BxLxH: Array, targets_BxL: Array, network: str = "discriminator", head: str = "lm_head"
) -> tuple[Array, Array]:
    """(-log probability of the target, is it the likeliest), each [B, L], at all tokens; in blocks where [B x L, V] is large."""
    return _vocabulary(vocabulary.nll_in_blocks, params, config, network, head, x_BxLxH, targets_BxL)


def _vocabulary(function: Callable, params: Params, config: ElectraConfig, network: str, head_name: str, x_BxKxH: Array, *more_BxK: Array):
    """function(x [S, E], words [V, E], bias [V], *more [S]) of a head over the vocabulary, each result [S, ..] as [B, K, ..]."""
    kind = "mlm" if "norm" in _head_of(params, network, head_name) else "tied"

    @jax.named_scope("vocabulary")
    def head(params, x_BxKxH, *more_BxK):
        x_SxE, bias_V = _head(config, network, kind).apply({"params": params["head"]}, _flat(x_BxKxH))
        out = function(x_SxE, params["word"], bias_V, *map(_flat, more_BxK))
        return jax.tree.map(lambda y: y.reshape(*x_BxKxH.shape[:2], *y.shape[1:]), out)

    seen = sharing.seen(params, config, network)
    # The words travel as they are stored, as they do for the embedding: cast before, their gradient would be rounded on its way back.
    used = {"head": _head_of(params, network, head_name), "word": seen["embeddings"]["word"]}
    return sharding.rows(sharding.on_rows(head)(used, x_BxKxH, *more_BxK))


def _flat(x: Array) -> Array:
    """[B, K, ..] -> [B x K, ..]."""
    return x.reshape(-1, *x.shape[2:])


def _at(x_BxLxH: Array, slots_BxK: Array) -> Array:
    """[B, K, H]; row by row, so that a batch which is cut by rows stays so."""
    return jax.vmap(lambda x_LxH, slots_K: x_LxH[slots_K])(x_BxLxH, slots_BxK)


def _head_of(params: Params, network: str, head: str) -> Params:
    if head not in params[network]:
        raise UserError(f"the model's {network} has no {head}: hidden_states gives its last layer")
    return params[network][head]


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

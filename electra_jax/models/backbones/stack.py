"""A backbone of layers, stacked by kind: each parameter of the layers of one kind is one array with a leading layer axis.

Stacked, because dispatching a step with 1,200 arrays of state takes milliseconds, and with 60 next to nothing. Inside the step the
layers are unrolled, or scanned period by period of the pattern; `lax.split` takes the stacks apart, because its transpose is one
concatenation where that of indexing is a sum.
"""

import collections
import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from electra_jax import rng
from electra_jax.models import layers
from electra_jax.models.backbones import Backbone
from electra_jax.models.config import EncoderConfig
from electra_jax.parallel import sharding
from electra_jax.types import Array, Batch, Params

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
Look = Callable[[Array], Any] | None
EMBEDDED = 0  # the place of the dropout on embeddings, in layer 0 (see rng.site_seeds); layers count from 1


class Kind(NamedTuple):
    """One kind of layer.

    block(config) is a flax module, called with (x [N, H], batch, seeds [B, 2] or None, the layer's number, which may be traced).
    num_params(config) and flops(config, length) are of one layer, as Backbone's.
    """

    block: Callable[[EncoderConfig], nn.Module]
    num_params: Callable[[EncoderConfig], int]
    flops: Callable[[EncoderConfig, int], int]


def backbone(kinds: Mapping[str, Kind], pattern: Callable[[EncoderConfig], Sequence[str]]) -> Backbone:
    """The backbone of these kinds of layers, by the names of their groups in params.

    pattern(config): the kind of each layer, from the embeddings up. Params are a group for each kind and, where the embeddings have
    another width than the network, {"project"}.
    """
    if misnamed := [name for name in kinds if not sharding.is_stacked(f"{name}/")]:
        raise ValueError(f"a kind's name ends in 'layers', or the tables of paths do not know it: {', '.join(misnamed)}")

    def init(key: Array, config: EncoderConfig) -> Params:
        project_key, layers_key = jax.random.split(key)
        order = pattern(config)
        keys = jax.random.split(layers_key, len(order))
        params = {}
        for name, kind in kinds.items():
            places = [place for place, of in enumerate(order) if of == name]
            if places:
                params[name] = _init_group(kind, keys if len(places) == len(order) else keys[np.array(places)], config)
        if config.projects:
            x_1xE = jnp.zeros((1, config.embedding_size), jnp.dtype(config.dtype))
            params["project"] = _project(config).init(project_key, x_1xE)["params"]
        return params

    def apply(
        params: Params, config: EncoderConfig, embedded_NxE: Array, batch: Batch, seeds_Bx2: Array | None, look: Look = None
    ) -> Array | tuple[Array, Any]:
        x = _entered(params, config, embedded_NxE, seeds_Bx2)
        looked = look or (lambda x: None)
        below = looked(x)
        order = tuple(pattern(config))
        period = _period(order)
        scanned = config.scan_layers and (period == 1 or period < len(order))
        run = {name: _layer(kinds[name], config, batch, seeds_Bx2, scanned) for name in set(order)}
        if scanned:
            x, seen = _scanned(run, params, x, order, period, looked)
        else:
            run = {name: jax.jit(layer) for name, layer in run.items()}  # traced and differentiated once per kind; XLA inlines it
            seen = []
            for number, (name, layer_params) in enumerate(_in_order(params, order), start=1):
                x = run[name](x, layer_params, jnp.uint32(number))
                seen.append(looked(x))
            seen = jax.tree.map(lambda *each: jnp.stack(each), *seen)
        return (x, jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), below, seen)) if look else x

    def num_params(config: EncoderConfig) -> int:
        project = config.embedding_size * config.hidden_size + config.hidden_size if config.projects else 0
        return sum(kinds[name].num_params(config) for name in pattern(config)) + project

    def flops(config: EncoderConfig, length: int) -> float:
        project = 2 * length * config.embedding_size * config.hidden_size if config.projects else 0
        return float(sum(kinds[name].flops(config, length) for name in pattern(config)) + project)

    return Backbone(init, apply, num_params, flops, tuple(kinds))


def _init_group(kind: Kind, keys: Array, config: EncoderConfig) -> Params:
    token = jnp.zeros((1, 1), jnp.int32)
    batch = Batch(tokens=token, segments=token, positions=token, types=token, row=token[0])
    x_1xH = jnp.zeros((1, config.hidden_size), jnp.dtype(config.dtype))
    block = kind.block(dataclasses.replace(config, attention="xla"))  # kernels do not take rows of one token
    return jax.vmap(lambda k: block.init(k, x_1xH, batch, None, 0)["params"])(keys)


def _project(config: EncoderConfig) -> nn.Module:
    return layers.glorot_dense(config, config.hidden_size, "project")


def _entered(params: Params, config: EncoderConfig, embedded_NxE: Array, seeds_Bx2: Array | None) -> Array:
    """[N, H]. Dropout falls on the embeddings before the projection, as in the published code, with bits of the network's own."""
    x = embedded_NxE
    if seeds_Bx2 is not None and config.dropout:
        x = rng.dropout(x, rng.site_seeds(seeds_Bx2, 0, EMBEDDED), config.dropout)
    if config.projects:
        x = sharding.on_rows(lambda params, x: _project(config).apply({"params": params}, x), config.dtype)(params["project"], x)
    return sharding.rows(x)


def _layer(kind: Kind, config: EncoderConfig, batch: Batch, seeds_Bx2: Array | None, scanned: bool) -> Callable:
    """layer(x [N, H], its params, its number) -> x."""

    def layer(x_NxH: Array, layer_params: Params, number: Array | int) -> Array:
        def block(params, x_NxH, batch, seeds_Bx2):
            return kind.block(config).apply({"params": params["layer"]}, x_NxH, batch, seeds_Bx2, params["number"])

        params = {"layer": layer_params, "number": number}
        return sharding.rows(sharding.on_rows(block, config.dtype)(params, x_NxH, batch, seeds_Bx2))

    if config.remat != "none":
        layer = jax.checkpoint(layer, policy=REMAT_POLICIES[config.remat], prevent_cse=not scanned)
    return layer


def _scanned(run: Mapping[str, Callable], params: Params, x: Array, order: Sequence[str], period: int, look: Callable) -> tuple[Array, Any]:
    """A scan over the periods of the pattern, each of whose layers is a part of the scan's body. Also look(x) of each layer, stacked."""

    def by_period(tree, count: int):
        """[layers, ..] -> [periods, of this kind in one, ..]; one alone has no axis."""
        return tree if count == 1 else jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]), tree)

    counts = collections.Counter(order[:period])
    groups = {name: by_period(params[name], count) for name, count in counts.items()}
    numbers = by_period(jnp.arange(1, len(order) + 1, dtype=jnp.uint32), period)

    def one_period(x, inputs):
        groups, numbers = inputs
        seen = []
        for place, name in enumerate(order[:period]):
            group, which = groups[name], order[:place].count(name)
            layer_params = group if counts[name] == 1 else jax.tree.map(operator.itemgetter(which), group)
            x = run[name](x, layer_params, numbers if period == 1 else numbers[place])
            seen.append(look(x))
        return x, jax.tree.map(lambda *each: jnp.stack(each), *seen)

    x, seen = jax.lax.scan(one_period, x, (groups, numbers))
    return x, jax.tree.map(lambda x: x.reshape(len(order), *x.shape[2:]), seen)


def _period(order: Sequence[str]) -> int:
    """The length of the shortest pattern that `order` repeats."""
    return next(size for size in range(1, len(order) + 1) if len(order) % size == 0 and order == order[:size] * (len(order) // size))


def _in_order(params: Params, order: Sequence[str]):
    """(kind, params) of each layer."""
    groups = {name: iter(unstack(params[name], count)) for name, count in collections.Counter(order).items()}
    return [(name, next(groups[name])) for name in order]


def unstack(stacked: Params, num_layers: int) -> list[Params]:
    """One tree of arrays with a leading layer axis -> a list of trees, one a layer."""
    leaves, treedef = jax.tree.flatten(stacked)
    split = [jax.lax.split(leaf, [1] * num_layers, axis=0) for leaf in leaves]
    return [treedef.unflatten([jnp.squeeze(pieces[i], 0) for pieces in split]) for i in range(num_layers)]

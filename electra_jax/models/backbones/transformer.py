"""The stack of layers: one array a parameter with a leading layer axis, unrolled or scanned inside the step.

Stacked, because a step with 1,200 leaves of state costs milliseconds to dispatch and 60 cost nothing; unstacked by `lax.split`
and not by indexing, so that its transpose is one concatenation.
"""

import dataclasses

import jax
import jax.numpy as jnp

from electra_jax import rng
from electra_jax.models import layers
from electra_jax.models.config import EncoderConfig
from electra_jax.parallel import sharding
from electra_jax.types import Array, Batch, Params

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def init(key: Array, config: EncoderConfig) -> Params:
    """{"layers": stacked [num_layers, ...]} and, where the embeddings have another width, {"project"}."""
    project_key, layers_key = jax.random.split(key)
    token = jnp.zeros((1, 1), jnp.int32)
    batch = Batch(tokens=token, segments=token, positions=token, types=token, row=token[0])
    x_1xH = jnp.zeros((1, config.hidden_size), jnp.dtype(config.dtype))
    block = layers.Block(dataclasses.replace(config, attention="xla"))  # kernels do not take rows of one token
    params = {"layers": jax.vmap(lambda k: block.init(k, x_1xH, batch, None, 0)["params"])(jax.random.split(layers_key, config.num_layers))}
    if config.projects:
        x_1xE = jnp.zeros((1, config.embedding_size), jnp.dtype(config.dtype))
        params["project"] = project(config).init(project_key, x_1xE)["params"]
    return params


def project(config: EncoderConfig):
    return layers.glorot_dense(config, config.hidden_size, "project")


def apply(params: Params, config: EncoderConfig, embedded_NxE: Array, batch: Batch, seeds_Bx2: Array | None) -> Array:
    """Hidden states [B x L, H] of embedded tokens [B x L, E]. `seeds_Bx2` (uint32) switches dropout on.

    Dropout falls on the embeddings before the projection, as in the published code, with bits of the network's own.
    """
    x = embedded_NxE
    if seeds_Bx2 is not None and config.dropout:
        x = rng.dropout(x, rng.site_seeds(seeds_Bx2, 0, layers.EMBEDDED), config.dropout)
    if config.projects:
        x = sharding.on_rows(lambda params, x: project(config).apply({"params": params}, x), config.dtype)(params["project"], x)
    x = sharding.rows(x)

    def layer(x_NxH: Array, layer_params: Params, number: Array | int) -> Array:
        def block(params, x_NxH, batch, seeds_Bx2):
            return layers.Block(config).apply({"params": params["layer"]}, x_NxH, batch, seeds_Bx2, params["number"])

        params = {"layer": layer_params, "number": number}
        return sharding.rows(sharding.on_rows(block, config.dtype)(params, x_NxH, batch, seeds_Bx2))

    if config.remat != "none":
        layer = jax.checkpoint(layer, policy=REMAT_POLICIES[config.remat], prevent_cse=not config.scan_layers)

    if config.scan_layers:
        numbers = jnp.arange(1, config.num_layers + 1, dtype=jnp.uint32)
        return jax.lax.scan(lambda x, inputs: (layer(x, *inputs), None), x, (params["layers"], numbers))[0]
    layer = jax.jit(layer)  # traced and differentiated once and not once a layer; XLA inlines it
    for number, layer_params in enumerate(unstack(params["layers"], config.num_layers), start=1):
        x = layer(x, layer_params, jnp.uint32(number))
    return x


def unstack(stacked: Params, num_layers: int) -> list[Params]:
    """One tree of arrays with a leading layer axis -> a list of trees, one a layer."""
    leaves, treedef = jax.tree.flatten(stacked)
    split = [jax.lax.split(leaf, [1] * num_layers, axis=0) for leaf in leaves]
    return [treedef.unflatten([jnp.squeeze(pieces[i], 0) for pieces in split]) for i in range(num_layers)]

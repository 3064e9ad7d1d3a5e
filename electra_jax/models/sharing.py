"""What the generator shares with the discriminator (`model.sharing`), and where in params each lies.

shared     the embeddings (arXiv 2003.10555, 3.2; the published models): params as models/electra.py says.
none       nothing: params["embeddings"] are the discriminator's, and params["generator"]["embeddings"] its own.
all        every weight but the heads (the paper's 3.2, "weight sharing"; both networks are of one size): params["generator"] has its head
           alone.
gdes       gradient-disentangled embeddings (DeBERTaV3, arXiv 2111.09543, 3.3): the discriminator's words and positions are the generator's,
           through which no gradient of the discriminator flows, plus differences, which begin at zero. params["generator"]["embeddings"]
           are the generator's; params["embeddings"] have the differences in the place of words and positions, and a type table and a
           LayerNorm of the discriminator's own (microsoft/DeBERTa, apps/tasks/rtd_task.py).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from electra_jax.models import heads
from electra_jax.models.config import ElectraConfig
from electra_jax.types import Params

GENERATOR = "generator"
DIFFERENCES = ("word", "position")  # the tables of which "gdes" keeps differences


def begun(params: Params, config: ElectraConfig, embeddings: Callable[[], Params]) -> Params:
    """The first parameters, from those of a model that shares its embeddings. embeddings() draws further ones."""
    if config.sharing == "shared" or not {GENERATOR, "discriminator"} <= params.keys():  # one alone has nothing to share
        return params
    generator = params[GENERATOR]
    if config.sharing == "all":
        return {**params, GENERATOR: _heads(generator)}
    if config.sharing == "none":
        return {**params, GENERATOR: {**generator, "embeddings": embeddings()}}
    zeros = {name: jnp.zeros_like(table) for name, table in params["embeddings"].items() if name in DIFFERENCES}
    own = embeddings()
    return {**params, "embeddings": {**own, **zeros}, GENERATOR: {**generator, "embeddings": params["embeddings"]}}


def seen(params: Params, config: ElectraConfig, network: str) -> Params:
    """params with "embeddings" and the network as `network` computes with them, wherever they lie."""
    its = params[network]
    if network == GENERATOR and config.sharing == "all" and its.keys() <= set(heads.NAMES):
        return {**params, GENERATOR: {**_body(params["discriminator"]), **its}}
    if "embeddings" in its:
        return {**params, "embeddings": its["embeddings"]}
    if config.sharing == "gdes" and "embeddings" in params.get(GENERATOR, {}):
        return {**params, "embeddings": _summed(params)}
    return params


def alone(params: Params, config: ElectraConfig, network: str) -> tuple[Params, ElectraConfig]:
    """(the embeddings that the network computes with, and the network; their config): a model of one network, which shares nothing."""
    whole = seen(params, config, network)
    its = {name: tree for name, tree in whole[network].items() if name != "embeddings"}
    return {"embeddings": whole["embeddings"], network: its}, dataclasses.replace(config, sharing="shared")


def reshared(params: Params, config: ElectraConfig, kind: str) -> Params | None:
    """The same model, of both networks, as `model.sharing=kind` holds it; None where that cannot hold it."""
    if kind == config.sharing:
        return params
    of_discriminator, _ = alone(params, config, "discriminator")
    of_generator, _ = alone(params, config, GENERATOR)
    others = {name: tree for name, tree in params.items() if name not in ("embeddings", "discriminator", GENERATOR)}
    if kind == "shared" and config.sharing == "all":
        return {**of_discriminator, GENERATOR: of_generator[GENERATOR], **others}
    if kind in ("none", "gdes"):
        tables = of_discriminator["embeddings"]
        if kind == "gdes":
            less = {name: tables[name] - of_generator["embeddings"][name] for name in DIFFERENCES if name in tables}
            tables = {**tables, **less}
        apart = {**of_generator[GENERATOR], "embeddings": of_generator["embeddings"]}
        return {**of_discriminator, "embeddings": tables, GENERATOR: apart, **others}
    return None


def _summed(params: Params) -> Params:
    base, own = params[GENERATOR]["embeddings"], params["embeddings"]
    return {**own, **{name: jax.lax.stop_gradient(base[name]) + own[name] for name in DIFFERENCES if name in own}}


def _heads(network: Params) -> Params:
    return {name: tree for name, tree in network.items() if name in heads.NAMES}


def _body(network: Params) -> Params:
    return {name: tree for name, tree in network.items() if name not in heads.NAMES}

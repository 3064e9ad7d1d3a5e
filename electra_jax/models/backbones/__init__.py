"""Backbones: what stands between the embeddings and a head. One a file, which has a `BACKBONE`; `model.backbone` names it.

Adding one is that file and its line in BACKBONES; stack.py makes a Backbone of layers. No jax is imported here, so that a config can be
checked without it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from electra_jax import options

BACKBONES = {"transformer": "electra_jax.models.backbones.transformer"}


class Backbone(NamedTuple):
    """A network without its head, as pure functions of its EncoderConfig.

    init(key, config) -> params: the groups of stacked layers that `kinds` names, and whatever else it needs.
    apply(params, config, embedded [N, E], batch, seeds [B, 2] or None, look) -> hidden states [N, H]. N is B x L; seeds switch dropout on.
      Where look, a function of [N, H], is given, the result is (hidden states, look of what enters the first layer and of what each layer
      gives, stacked on a leading axis [layers + 1]).
    num_params(config) -> how many parameters `init` makes.
    flops(config, length) -> floating-point operations of matrix products, forward, for one row of `length` tokens.
    kinds: the groups of params that have a leading layer axis. Each name ends in "layers", which is how the tables of sharding
      and of optimizers know them.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]
    num_params: Callable[..., int]
    flops: Callable[..., float]
    kinds: tuple[str, ...]


def backbone(name: str) -> Backbone:
    return options.load(BACKBONES, name).BACKBONE

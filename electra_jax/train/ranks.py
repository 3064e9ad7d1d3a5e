"""The effective rank of the states of each layer: how many directions they fill.

It shows a failure that neither loss nor AUC shows: where a layer's states have come to lie along one or two directions, the network has
lost the words it read, and fine-tuning it does worse than from random weights (docs/results.md).

Rank = tr(C)^2 / tr(C^2) of the states' covariance C, the participation ratio of its eigenvalues: H where all H directions vary alike, 1
where all states lie on a line. It needs no eigenvalues.
"""

import operator
from collections.abc import Callable, Sequence
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from electra_jax.models import electra
from electra_jax.models.config import ElectraConfig
from electra_jax.parallel import mesh as meshes
from electra_jax.types import Array, Batch, Params


class Moments(flax.struct.PyTreeNode):
    """Of some vectors [.., H]."""

    count: Array  # [..]
    mean: Array  # [.., H]
    products: Array  # [.., H, H]: the sum of (x - mean)(x - mean)^T

    @classmethod
    def of(cls, x_NxH: Array, counted_N: Array) -> "Moments":
        weights_Nx1 = counted_N.astype(jnp.float32)[:, None]
        x_NxH = x_NxH.astype(jnp.float32)
        count = jnp.sum(weights_Nx1)
        mean_H = jnp.sum(x_NxH * weights_Nx1, 0) / jnp.maximum(count, 1.0)
        centred_NxH = (x_NxH - mean_H[None]) * weights_Nx1
        return cls(count, mean_H, jnp.matmul(centred_NxH.T, centred_NxH, precision="highest"))

    def __add__(self, other: "Moments") -> "Moments":
        """Of both together (Chan, Golub and LeVeque, 1979): about the common mean, so that nothing cancels out."""
        count = self.count + other.count
        share = other.count / jnp.maximum(count, 1.0)
        between = other.mean - self.mean
        outer = between[..., :, None] * between[..., None, :]
        return Moments(
            count,
            self.mean + between * share[..., None],
            self.products + other.products + outer * (self.count * share)[..., None, None],
        )

    def rank(self) -> Array:
        """[..]: 0 where all vectors are equal."""
        traces = jnp.trace(self.products, axis1=-2, axis2=-1)
        return traces**2 / jnp.maximum(jnp.sum(self.products**2, (-2, -1)), jnp.finfo(jnp.float32).tiny)


def make_ranks(
    model: ElectraConfig, networks: Sequence[str], mesh: Mesh, heldout: Sequence[tuple[Batch, np.ndarray]], first: Callable[[], Params]
) -> Callable[[Params], dict[str, float]]:
    """ranks(params) -> {"eval/rank/NETWORK/LAYER": of the states of the tokens of held-out text, nothing masked in it;
    "eval/rank_of_means/NETWORK/LAYER": of their means over each row; and "eval/random_rank/..", "eval/random_rank_of_means/..": the same of
    the model that first() gives, with random weights}. Layer 0 is what enters the first layer.

    heldout: (batch, valid [B] bool), whose rows all have one length; at least one.
    """

    def find(params: Params, batch: Batch, valid_B: Array) -> dict[str, tuple[Moments, Moments]]:
        real_BxL = (batch.segments > 0) & valid_B[:, None]

        def look(x_NxH: Array) -> tuple[Moments, Moments]:
            x_BxLxH = x_NxH.reshape(*real_BxL.shape, -1).astype(jnp.float32)
            sums_BxH = jnp.sum(x_BxLxH * real_BxL[..., None], 1)
            means_BxH = sums_BxH / jnp.maximum(jnp.sum(real_BxL, 1), 1)[:, None]
            return Moments.of(x_NxH, real_BxL.reshape(-1)), Moments.of(means_BxH, jnp.any(real_BxL, 1))

        return {name: electra.each_layer(params, model, batch, look, name) for name in networks}

    def compiled(function: Callable) -> Callable:
        return meshes.on_mesh(jax.jit(function, out_shardings=meshes.replicated(mesh)), mesh)

    is_moments = lambda x: isinstance(x, Moments)  # noqa: E731
    add = compiled(lambda so_far, *args: jax.tree.map(operator.add, so_far, find(*args), is_leaf=is_moments))
    ranks = compiled(lambda moments: jax.tree.map(Moments.rank, moments, is_leaf=is_moments))

    random = first()
    shapes = meshes.on_mesh(partial(jax.eval_shape, find), mesh)(random, *heldout[0])
    nothing = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)

    def measure(params: Params) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        moments = nothing
        for batch, valid_B in heldout:
            moments = add(moments, params, batch, valid_B)
        return jax.device_get(ranks(moments))

    def named(params: Params, prefix: str) -> dict[str, float]:
        return {
            f"eval/{prefix}{kind}/{network}/{layer}": float(rank)
            for network, both in measure(params).items()
            for kind, ranks_of_layers in zip(("rank", "rank_of_means"), both, strict=True)
            for layer, rank in enumerate(ranks_of_layers)
        }

    of_random = named(random, "random_")
    return lambda params: named(params, "") | of_random

"""Where every array lies: one table for parameters and optimizer state, and the constraints on what flows between them.

The constraints matter under jit alone, where XLA chooses: without them a batch that is cut over the axis which also cuts the
parameters is gathered and the hidden units are cut instead (3.5 GB of temporaries against 0.7). Without a mesh, and inside
shard_map and pmap, where every array is local, they do nothing.
"""

import re
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from electra_jax.cli import UserError
from electra_jax.parallel.mesh import AXES

# A group of layers of one kind, each parameter of which is one array with a leading layer axis (models/backbones/stack.py).
STACKED = r"(^|/)\w*layers/"
# (path regex, the axis of the array that fsdp cuts); the first match counts, and the optimizer's arrays end in the same names.
# Norms and biases, a thousandth of the whole, stay whole: gathering them would cost more time than they take memory. The axis of
# layers is never cut. Word embeddings are cut by width: vocabularies are no round numbers.
TABLE = (
    (STACKED + r".*kernel$", 1),  # [layers, in, out]
    (r"(^|/)kernel$", 0),  # [in, out], and a layer by itself
    (r"(^|/)(word|position|type)$", 1),  # [.., width]
)


def is_stacked(path: str) -> bool:
    """Whether the parameter at this path has a leading layer axis."""
    return re.search(STACKED, path) is not None


def spec(path: str, shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """Of one array. One that `fsdp` does not divide stays whole."""
    axis = next((axis for regex, axis in TABLE if re.search(regex, path)), None)
    if fsdp == 1 or axis is None or axis >= len(shape) or shape[axis] % fsdp:
        return PartitionSpec()
    return PartitionSpec(*(None,) * axis, "fsdp")


def specs(tree, fsdp: int):
    """A tree of arrays, concrete or abstract -> the tree of their specs."""

    def of(path, x):
        return spec(jax.tree_util.keystr(path, simple=True, separator="/"), x.shape, fsdp)

    return jax.tree_util.tree_map_with_path(of, tree)


def shardings(tree, mesh: Mesh):
    """The tree of NamedShardings of a state. UserError where fsdp is more than 1 and can cut nothing of it."""
    fsdp = mesh.shape["fsdp"]
    found = specs(tree, fsdp)
    if fsdp > 1 and not any("fsdp" in s for s in jax.tree.leaves(found, is_leaf=lambda s: isinstance(s, PartitionSpec))):
        raise UserError(
            f"parallel.fsdp={fsdp} divides the width of no parameter: choose a divisor of model.hidden_size, or --config.parallel.fsdp=1"
        )
    return jax.tree.map(lambda s: NamedSharding(mesh, s), found, is_leaf=lambda s: isinstance(s, PartitionSpec))


def _free_axes() -> dict[str, int]:
    """The sizes of the present mesh's axes; empty where there is no mesh, or each device runs a program of its own."""
    mesh = jax.sharding.get_abstract_mesh()
    return {} if mesh.empty or mesh.manual_axes else dict(mesh.shape)


def rows(x):
    """An activation or a tree of them, cut over all devices by its leading axis."""
    if not _free_axes():
        return x
    return jax.tree.map(partial(jax.lax.with_sharding_constraint, shardings=PartitionSpec(AXES)), x)


def fsdp() -> int:
    """Over how many devices arrays are cut, where this is traced: 1 where a device runs by itself, and without a mesh."""
    return _free_axes().get("fsdp", 1)


def per_device(function: Callable) -> Callable:
    """function(*arrays with a leading axis of rows) run by each device on its own rows: what XLA cannot cut by itself, a kernel."""
    if not _free_axes():
        return function
    by_rows = PartitionSpec(AXES)
    return jax.shard_map(function, in_specs=by_rows, out_specs=by_rows, check_vma=False)


def like_params(tree):
    """Gradients, cut as their parameters: they are then reduced and scattered, never summed whole on every device."""
    if fsdp() == 1:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, specs(tree, fsdp()))


def _gather(x, axis: int):
    """All of an array that fsdp cuts along `axis`. Its transpose scatters the sum of the gradients over the devices.

    A TPU can scatter along the first axis only, and sums along any other whole on every chip (libtpu 0.0.42): a table that is cut by
    its width travels as one block a device.
    """
    if axis == 0:
        return jax.lax.all_gather(x, "fsdp", axis=0, tiled=True)
    blocks = jax.lax.all_gather(x, "fsdp", axis=0)
    return jnp.moveaxis(blocks, 0, 1).reshape(x.shape[0], -1)


def on_rows(function: Callable, dtype: str | None = None) -> Callable:
    """function(params, *rows) -> rows, with `params` whole on every device for the time of its use, where fsdp cuts them.

    Each device gathers them, runs its own rows, and in the backward pass scatters the sum of the gradients. Left to itself
    XLA cuts an embedding's gradient by width, and gathers the activations of all rows for it.
    rows: arrays, or trees of them, with a leading axis of rows. dtype: matrices are cast to it before they travel.
    """

    def run(params, *rows):
        if fsdp() == 1:
            return function(params, *rows)
        cut = specs(params, fsdp())

        def whole(x, where):
            x = x.astype(dtype) if dtype and x.ndim > 1 else x
            return _gather(x, where.index("fsdp")) if "fsdp" in where else x

        by_rows = PartitionSpec(AXES)
        gathered = jax.shard_map(
            lambda params, *rows: function(jax.tree.map(whole, params, cut), *rows),
            in_specs=(cut, *(by_rows,) * len(rows)),
            out_specs=by_rows,
            check_vma=False,
        )
        return gathered(params, *rows)

    return run

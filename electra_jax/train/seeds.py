"""Several seeds of one run in one program: the step of one seed, mapped over an axis of seeds.

Each seed has its own root key, rows, parameters and optimizer state; only the number of the step is common to all. On one device the
seeds take turns within the program; several devices train equally many seeds each. The step itself need not know of other seeds.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from electra_jax.cli import UserError
from electra_jax.parallel.mesh import AXES
from electra_jax.types import Array, Batch, Params, TrainState

_BY_SEED = PartitionSpec(AXES)


def check(count: int, mesh: Mesh) -> None:
    """UserError if the seeds cannot be divided evenly among the devices of one process."""
    if jax.process_count() > 1:
        raise UserError(f"seeds={count} train together in one process, and there are {jax.process_count()}: give each a run of its own")
    if mesh.shape["fsdp"] > 1:
        raise UserError(f"seeds={count} and parallel.fsdp={mesh.shape['fsdp']}: a seed lives on one device; leave parallel.fsdp out")
    if count % mesh.size:
        near = [n for n in (count // mesh.size * mesh.size, -(-count // mesh.size) * mesh.size) if n]
        raise UserError(f"seeds={count} cannot be dealt out to {mesh.size} devices: choose {' or '.join(map(str, near))} of them")


def init(of_one: Callable[[Array], TrainState], roots_S: Array) -> TrainState:
    """The first states of these root keys. They are computed one after the other, so that none depends on which others there are."""
    state = jax.lax.map(of_one, roots_S)
    return state.replace(step=state.step[0])


def step(of_one: Callable, mesh: Mesh) -> Callable:
    """The step of_one(state, batch) -> (state, metrics), for the state and the batch of several seeds: step(state, batch, spare).

    A batch has the rows of one seed after those of the other. Metrics are means over the seeds, except that "tokens" and "skipped" are
    sums and "skipped_in_a_row" is the maximum. The new state is written over `spare`, another state whose numbers do not matter. Written
    over the old state, it would make XLA copy each seed's part before reading it; and `lax.map` fills the memory of its result with zeros
    first. Either costs up to a tenth of a step on a CPU (docs/speed.md).
    """

    def on_a_device(step: Array, seeds: TrainState, batch: Batch, spare: TrainState):
        count = seeds.skipped.shape[0]
        batch = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)

        def one(written: TrainState, slices):
            number, state, batch = slices
            state, metrics = of_one(state.replace(step=step), batch)
            put = lambda all_seeds, x: jax.lax.dynamic_update_index_in_dim(all_seeds, x, number, 0)  # noqa: E731
            return jax.tree.map(put, written, state.replace(step=None)), metrics

        return jax.lax.scan(one, spare, (jnp.arange(count), seeds, batch))

    def all_seeds(state: TrainState, batch: Batch, spare: TrainState):
        specs = (PartitionSpec(), _BY_SEED, _BY_SEED, _BY_SEED)
        run = jax.shard_map(on_a_device, mesh=mesh, in_specs=specs, out_specs=(_BY_SEED, _BY_SEED), check_vma=False)
        new, metrics_S = run(state.step, state.replace(step=None), batch, spare.replace(step=None))
        ways = {"tokens": jnp.sum, "skipped": jnp.sum, "skipped_in_a_row": jnp.max}
        metrics = {name: ways.get(name, jnp.mean)(values_S) for name, values_S in metrics_S.items()}
        return new.replace(step=state.step + 1), metrics

    return all_seeds


def shardings(shapes: TrainState, mesh: Mesh) -> TrainState:
    """The shardings of such a state: the arrays of each seed are on the device that trains it."""
    by_seed = jax.tree.map(lambda _: NamedSharding(mesh, _BY_SEED), shapes)
    return by_seed.replace(step=NamedSharding(mesh, PartitionSpec()))


def members(state: TrainState) -> list[Params]:
    """The parameters of each seed."""
    return [_of_seed(state.params, seed) for seed in range(state.skipped.shape[0])]


@jax.jit
def _of_seed(tree, seed: Array):
    return jax.tree.map(lambda x: x[seed], tree)


def summary(found: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """{seed: its metrics} -> each metric's median under its name and, if there are several seeds, each seed's value as
    "eval/accuracy.seed3"."""
    names = next(iter(found.values()))
    medians = {name: float(np.median([metrics[name] for metrics in found.values()])) for name in names}
    if len(found) == 1:
        return medians
    return medians | {f"{name}.seed{seed}": metrics[name] for seed, metrics in found.items() for name in names}

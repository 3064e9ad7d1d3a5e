"""A recipe -> the parts of its train step, once: sessions, the compile for chips that are not there and benchmarks use it.

devices = Devices.of(recipe)                          # the mesh, and what follows from it
recipe = recipe.resolve(devices.platform)
parts = build(recipe, devices, pretraining_objective(recipe, vocabulary, devices))
program = parts.programs().of(batch)
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from electra_jax import rng
from electra_jax.cli import UserError
from electra_jax.objectives import OBJECTIVES
from electra_jax.options import load
from electra_jax.parallel import executors, sharding
from electra_jax.parallel.mesh import Platform, make_mesh
from electra_jax.recipe import Recipe, RunRecipe
from electra_jax.train import optimizer, seeds, step
from electra_jax.types import Array, Batch, Objective, Params, TrainState, Vocabulary


class Devices(NamedTuple):
    """Where a recipe runs."""

    mesh: jax.sharding.Mesh
    executor: str  # jit, shard_map or pmap
    platform: Platform

    @classmethod
    def of(cls, recipe: RunRecipe, devices: Sequence | None = None, num_seeds: int = 1) -> "Devices":
        """devices: all that there are, unless given. Raises UserError where mesh, executor or batch do not fit them.

        num_seeds: that train in one program; the rows of each lie on one device. Where parallel.data is left open, as many devices are
          taken as the seeds can be dealt out to evenly.
        """
        section = recipe.parallel
        if num_seeds > 1 and devices is None and section.data == -1 and jax.process_count() == 1:
            devices = jax.devices()[: max(n for n in range(1, jax.device_count() + 1) if num_seeds % n == 0)]
        mesh = make_mesh(section.slices, section.data, section.fsdp, devices)
        executor = executors.choose(section.executor, mesh)
        executors.check_batch(mesh.size if num_seeds == 1 else 1, recipe.train.batch_rows, recipe.train.accumulation_steps)
        return cls(mesh, executor, Platform.of(mesh))


class Parts(NamedTuple):
    """What a train step is made of, before anything is compiled."""

    devices: Devices
    objective: Objective
    rule: optax.GradientTransformation
    root: Array  # the key that all randomness is folded from
    init: Callable[[Array], TrainState]  # root -> the first state, born where it belongs
    abstract_state: Any  # the state's shapes, with their shardings
    body: Callable  # train_step(state, batch), as the executor runs it; of several seeds train_step(state, batch, spare)
    batch_rows: int  # of all seeds together
    seeds: tuple[int, ...]  # one, or several that train in one program

    def programs(self) -> executors.Programs:
        """The compiled step, a program for each row length that it meets."""
        several = len(self.seeds) > 1
        executor = "jit" if several else self.devices.executor
        return executors.Programs(self.body, self.abstract_state, self.devices.mesh, executor, self.batch_rows, spare=several)

    def members(self, state: TrainState) -> list[Params]:
        """The parameters of each seed."""
        return seeds.members(state) if len(self.seeds) > 1 else [state.params]


def build(recipe: RunRecipe, devices: Devices, objective: Objective, num_seeds: int = 1) -> Parts:
    """The parts for a resolved recipe. Raises UserError where they do not fit one another.

    num_seeds: that train in one program, the recipe's own and those that follow it. Each has train.batch_rows rows a step.
    """
    rule = optimizer.make_optimizer(recipe.optimizer, recipe.schedule, recipe.train.steps, objective.frozen)
    factor, peak_rate = optimizer.schedule(recipe.schedule, recipe.train.steps), recipe.optimizer.learning_rate
    numbers = tuple(recipe.seed + i for i in range(num_seeds))
    body = step.make_train_step(
        objective,
        rule,
        recipe.train.accumulation_steps,
        reduce=executors.reduction(devices.executor) if num_seeds == 1 else step.local_sums,
        learning_rate=lambda at: peak_rate * factor(at),
    )
    rows = recipe.train.batch_rows * num_seeds
    if num_seeds == 1:
        root = rng.root_key(recipe.seed)
        init, abstract_state = make_init(objective, rule, devices.mesh, root)
        return Parts(devices, objective, rule, root, init, abstract_state, body, rows, numbers)
    seeds.check(num_seeds, devices.mesh)
    roots_S = jnp.stack([rng.root_key(number) for number in numbers])
    first = partial(seeds.init, lambda root: step.init_state(root, objective, rule))
    init, abstract_state = _born(first, roots_S, lambda shapes: seeds.shardings(shapes, devices.mesh))
    return Parts(devices, objective, rule, roots_S, init, abstract_state, seeds.step(body, devices.mesh), rows, numbers)


def make_init(
    objective: Objective, rule: optax.GradientTransformation, mesh: jax.sharding.Mesh, root: Array
) -> tuple[Callable[[Array], TrainState], Any]:
    """(init(root) -> the first state, born where it belongs; the state as shapes with their shardings)."""
    return _born(lambda root: step.init_state(root, objective, rule), root, lambda shapes: sharding.shardings(shapes, mesh))


def _born(first: Callable[[Array], TrainState], root: Array, where: Callable) -> tuple[Callable[[Array], TrainState], Any]:
    shapes = jax.eval_shape(first, root)
    shardings = where(shapes)
    abstract = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings)
    return jax.jit(first, out_shardings=shardings), abstract


def pretraining_objective(recipe: Recipe, vocabulary: Vocabulary, devices: Devices) -> Objective:
    """What a resolved recipe's objective.name names, for rows of this vocabulary."""
    if "float64" in (recipe.model.dtype, recipe.model.param_dtype) and not jax.config.jax_enable_x64:
        raise UserError("float64 needs JAX_ENABLE_X64=1 in the environment; or choose model.dtype=float32")
    make = load(OBJECTIVES, recipe.objective.name).make
    objective = make(recipe.model, recipe.masking, recipe.objective, vocabulary, devices.platform.slots_multiple)
    if not any(float(weight) for step in (0, recipe.train.steps) for weight in objective.scales(step).values()):
        raise UserError(f"all weights of the losses of {recipe.objective.name} are 0: there is nothing to learn (objective.*_weight)")
    return objective


def abstract_batch(rows: int, length: int) -> Batch:
    """The shapes of a batch of so many rows."""
    table = jax.ShapeDtypeStruct((rows, length), np.int32)
    return Batch(table, table, table, table, jax.ShapeDtypeStruct((rows,), np.int32))

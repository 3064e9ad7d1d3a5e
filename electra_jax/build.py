"""A recipe -> the parts of its train step, once: sessions, the compile for chips that are not there and benchmarks use it.

devices = Devices.of(recipe)                          # the mesh, and what follows from it
recipe = recipe.resolve(devices.platform)
parts = build(recipe, devices, pretraining_objective(recipe, vocabulary, devices))
program = parts.programs().of(batch)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from electra_jax import rng
from electra_jax.cli import UserError
from electra_jax.objectives import OBJECTIVES
from electra_jax.options import load
from electra_jax.parallel import executors, sharding
from electra_jax.parallel.mesh import Platform, make_mesh
from electra_jax.recipe import Recipe
from electra_jax.train import optimizer, step
from electra_jax.types import Array, Batch, Objective, TrainState, Vocabulary


class Devices(NamedTuple):
    """Where a recipe runs."""

    mesh: jax.sharding.Mesh
    executor: str  # jit, shard_map or pmap
    platform: Platform

    @classmethod
    def of(cls, recipe: Recipe, devices: Sequence | None = None) -> "Devices":
        """devices: all that there are, unless given. Raises UserError where mesh, executor or batch do not fit them."""
        section = recipe.parallel
        mesh = make_mesh(section.slices, section.data, section.fsdp, devices)
        executor = executors.choose(section.executor, mesh)
        executors.check_batch(mesh, recipe.train.batch_rows, recipe.train.accumulation_steps)
        return cls(mesh, executor, Platform.of(mesh))


class Parts(NamedTuple):
    """What a train step is made of, before anything is compiled."""

    devices: Devices
    objective: Objective
    rule: optax.GradientTransformation
    root: Array  # the key that all randomness is folded from
    init: Callable[[Array], TrainState]  # root -> the first state, born where it belongs
    abstract_state: Any  # the state's shapes, with their shardings
    body: Callable  # train_step(state, batch), as the executor runs it
    batch_rows: int

    def programs(self) -> executors.Programs:
        """The compiled step, a program for each row length that it meets."""
        return executors.Programs(self.body, self.abstract_state, self.devices.mesh, self.devices.executor, self.batch_rows)


def build(recipe: Recipe, devices: Devices, objective: Objective) -> Parts:
    """The parts for a resolved recipe. Raises UserError where they do not fit one another."""
    rule = optimizer.make_optimizer(recipe.optimizer, recipe.schedule, recipe.train.steps)
    factor, peak_rate = optimizer.schedule(recipe.schedule, recipe.train.steps), recipe.optimizer.learning_rate
    body = step.make_train_step(
        objective,
        rule,
        recipe.train.accumulation_steps,
        reduce=executors.reduction(devices.executor),
        learning_rate=lambda at: peak_rate * factor(at),
    )
    root = rng.root_key(recipe.seed)
    init, abstract_state = make_init(objective, rule, devices.mesh, root)
    return Parts(devices, objective, rule, root, init, abstract_state, body, recipe.train.batch_rows)


def make_init(
    objective: Objective, rule: optax.GradientTransformation, mesh: jax.sharding.Mesh, root: Array
) -> tuple[Callable[[Array], TrainState], Any]:
    """(init(root) -> the first state, born where it belongs; the state as shapes with their shardings)."""
    shapes = jax.eval_shape(lambda root: step.init_state(root, objective, rule), root)
    shardings = sharding.shardings(shapes, mesh)
    init = jax.jit(lambda root: step.init_state(root, objective, rule), out_shardings=shardings)
    return init, jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings)


def pretraining_objective(recipe: Recipe, vocabulary: Vocabulary, devices: Devices) -> Objective:
    """What a resolved recipe's objective.name names, for rows of this vocabulary."""
    if "float64" in (recipe.model.dtype, recipe.model.param_dtype) and not jax.config.jax_enable_x64:
        raise UserError("float64 needs JAX_ENABLE_X64=1 in the environment; or choose model.dtype=float32")
    make = load(OBJECTIVES, recipe.objective.name).make
    return make(recipe.model, recipe.masking, recipe.objective, vocabulary, devices.platform.slots_multiple)


def abstract_batch(rows: int, length: int) -> Batch:
    """The shapes of a batch of so many rows."""
    table = jax.ShapeDtypeStruct((rows, length), np.int32)
    return Batch(table, table, table, table, jax.ShapeDtypeStruct((rows,), np.int32))

"""Our sides: the step as pretraining builds it, on one device, and what this machine reaches in a matrix product and a copy."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import rows
from electra_jax import build as building
from electra_jax.parallel import chips, executors, mesh
from electra_jax.recipe import Recipe
from electra_jax.types import Batch, Objective, Vocabulary

Run = Callable[[], dict[str, float]]
Stored = Mapping[str, Any]  # a recipe as JSON values (Recipe.stored), which is how a side's process gets it


class Built(NamedTuple):
    """What a step is made of, before it is compiled. The recipe is resolved."""

    recipe: Recipe
    parts: building.Parts

    @property
    def abstract_batch(self) -> Batch:
        return building.abstract_batch(self.recipe.train.batch_rows, self.recipe.data.length)

    def compile(self, objective: Objective | None = None) -> executors.Program:
        """Pretraining's step; `objective` in the place of the recipe's."""
        parts = building.build(self.recipe, self.parts.devices, objective) if objective else self.parts
        return parts.programs().of(self.abstract_batch)


def build(recipe: Recipe, devices: Sequence | None = None) -> Built:
    """`recipe` needs no data here. devices: unless given, the first one that there is."""
    executors.run_in_the_call()
    where = building.Devices.of(recipe, devices or jax.devices()[:1])
    recipe = recipe.resolve(where.platform)
    vocabulary = Vocabulary(rows.CLS, rows.SEP, rows.MASK, np.ones(recipe.model.vocab_size, bool))
    return Built(recipe, building.build(recipe, where, building.pretraining_objective(recipe, vocabulary, where)))


def batch(recipe: Recipe, kind: str) -> Batch:
    return rows.make(kind, recipe.model.vocab_size, recipe.train.batch_rows, recipe.data.length)


def step(stored: Stored, kind: str = "full", steps: int = 1) -> Run:
    """A turn is so many pretraining steps on the same rows, waited for once, as the loop does not wait for its device."""
    built = build(Recipe.parse(stored))
    program, parts = built.compile(), built.parts
    given, state = batch(built.recipe, kind), parts.init(parts.root)
    placed, flops = program.place(given), parts.objective.flops(*given.tokens.shape)
    work = {"steps": steps, "flops": steps * flops, "tokens": steps * rows.useful_tokens(given), "rows": steps * len(given.row)}
    of_program = {"program_mib": program.peak_bytes / 2**20, "compile_secs": program.compile_secs}

    def run() -> dict[str, float]:
        nonlocal state
        for _ in range(steps):
            state, metrics = program.run(state, placed)
        jax.block_until_ready(state)
        return {"loss": float(metrics["loss"]), **work, **of_program, **device_memory()}

    return run


def matmul(size: int = 4096, dtype: str = "float32") -> Run:
    """A turn is one product of square matrices: the peak that a step is held against."""
    multiply, x_NxN = jax.jit(jnp.matmul), jnp.ones((size, size), dtype)

    def run() -> dict[str, float]:
        multiply(x_NxN, x_NxN).block_until_ready()
        return {"flops": 2.0 * size**3}

    return run


def stream(megabytes: int = 512) -> Run:
    """A turn is x + 2 y of arrays far larger than caches, into x: what the memory gives."""
    add = jax.jit(lambda x, y: x + 2.0 * y, donate_argnums=0)
    x, y = (jnp.ones(megabytes * 2**18, jnp.float32) for _ in range(2))

    def run() -> dict[str, float]:
        nonlocal x
        x = add(x, y).block_until_ready()
        return {"bytes": 3.0 * megabytes * 2**20}

    return run


def device_memory() -> dict[str, float]:
    """The peak of an accelerator's memory takes the place of the process's own."""
    stats = jax.devices()[0].memory_stats() or {}
    return {"peak_mib": stats["peak_bytes_in_use"] / 2**20} if "peak_bytes_in_use" in stats else {}


def hardware() -> Run:
    """The device and its memory. Asked in a child: a parent that holds a GPU would take memory from both sides."""
    device = jax.devices()[0]
    peak = chips.peak_flops(device.device_kind, "bfloat16")
    memory_bytes = mesh.device_memory_bytes(mesh.make_mesh(devices=[device]))
    return lambda: {"platform": device.platform, "kind": device.device_kind, "peak_bfloat16": peak, "memory_bytes": memory_bytes}

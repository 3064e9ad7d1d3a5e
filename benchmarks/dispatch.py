"""What each executor costs a call, without the step's own work."""

import dataclasses
import statistics
import time

import jax
import numpy as np

from benchmarks import ours
from electra_jax.parallel import config, executors, mesh
from electra_jax.recipe import Recipe


def measure(recipe: Recipe, rounds: int) -> dict[str, float]:
    """Milliseconds a call, median, of a step that only counts, with all arrays of the recipe's state.

    "bare" is jax.jit without shardings or a mesh, on one device; the executors run on all devices that there are.
    """
    devices = mesh.make_mesh()
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, batch_rows=devices.size))
    built = ours.build(recipe, list(devices.devices.flat))
    parts, batch = built.parts, built.abstract_batch
    rows = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), batch)

    def body(state, batch):
        return state.replace(step=state.step + 1), {"loss": batch.tokens.sum()}

    def executed(name):
        program = executors.compile_step(body, parts.abstract_state, batch, devices, name)
        return program.run, program.place(rows), parts.init(parts.root)

    one = jax.devices()[0]
    bare = jax.jit(body, donate_argnums=0), jax.device_put(rows, one), jax.device_put(jax.device_get(parts.init(parts.root)), one)
    sides = {"bare": bare, **{name: executed(name) for name in config.EXECUTORS if name != "auto"}}
    secs: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, (run, placed, state) in sides.items():
            start = time.perf_counter()
            state, _ = run(state, placed)
            jax.block_until_ready(state.step)
            secs[name].append(time.perf_counter() - start)
            sides[name] = run, placed, state
    return {name: 1e3 * statistics.median(values[rounds // 10 :]) for name, values in secs.items()}

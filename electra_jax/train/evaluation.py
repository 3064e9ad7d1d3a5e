"""Held-out evaluation with one key for all: the same masks and samples every time, so that its numbers compare over a run, and over runs
with other seeds."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from electra_jax import rng
from electra_jax.parallel import mesh as meshes
from electra_jax.rng import StepRng
from electra_jax.types import Array, Batch, Objective, Params


def make_eval_step(objective: Objective) -> Callable:
    """eval_step(params, batch, valid [B] bool) -> (weights, Terms, valid): dropout off; invalid rows count for nothing. `valid` comes back
    so that each process has all of it, as it has the outputs."""

    def eval_step(params: Params, batch: Batch, valid_B: Array):
        batch = batch.replace(segments=batch.segments * valid_B[:, None])
        # A stream of its own: held-out row 5 must not get the masks of training row 5.
        step_rng = StepRng(jax.random.fold_in(rng.root_key(0), 1), jnp.zeros((), jnp.int32))
        plan, weights = objective.plan(batch, step_rng, False)
        return weights, objective.terms(params, batch, plan), valid_B

    return eval_step


def evaluate(objective: Objective, eval_step: Callable, params: Params, batches: Iterable[tuple[Batch, np.ndarray]]) -> dict[str, float]:
    """`eval/*` metrics over all batches: sums divided once, in float64, and what `objective.measure` makes of the outputs.

    batches: (batch, valid [B] bool), on the host or on the devices; they may have several row lengths.
    """
    losses: dict[str, float] = {}
    weights: dict[str, float] = {}
    sums: dict[str, np.ndarray] = {}

    def each() -> Iterator[dict[str, np.ndarray]]:
        """The outputs of one batch's valid rows after the other; the sums are added on the way."""
        for batch, valid_B in batches:
            batch_weights, terms, valid_B = jax.device_get(eval_step(params, batch, valid_B))
            for name, value in terms.losses.items():
                losses[name] = losses.get(name, 0.0) + float(value)
                weights[name] = weights.get(name, 0.0) + float(batch_weights[name])
            for name, pair in terms.metrics.items():
                sums[name] = sums.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
            yield {name: value[valid_B] for name, value in terms.outputs.items()}

    outputs = each()
    measured = objective.measure(outputs)
    for _ in outputs:  # those that it did not ask for
        pass
    means = {name: losses[name] / max(weights[name], 1.0) for name in losses}
    metrics = {f"{name}_loss": value for name, value in means.items()}
    scales = objective.scales(math.inf)
    metrics["loss"] = sum(float(scales[name]) * value for name, value in means.items())
    metrics |= {name: float(value / max(weight, 1.0)) for name, (value, weight) in sums.items()}
    metrics |= measured
    return {f"eval/{name}": value for name, value in metrics.items()}


def make_outputs(objective: Objective, mesh: Mesh) -> Callable:
    """outputs(params, batches of (batch, valid [B] bool)) -> Terms.outputs of the valid rows of one batch after the other,
    without their losses; the rows may lack labels. Each shape of a batch is compiled once, however often it is called.
    """
    step = jax.jit(lambda *args: make_eval_step(objective)(*args)[1].outputs, out_shardings=meshes.replicated(mesh))
    run = meshes.on_mesh(step, mesh)

    def outputs(params: Params, batches: Iterable[tuple[Batch, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
        waiting = None  # the devices compute a batch while the one before is brought here and the next is made
        for batch, valid_B in batches:
            found = run(params, *meshes.to_devices((batch, valid_B), mesh)), valid_B
            if waiting is not None:
                yield _valid(*waiting)
            waiting = found
        if waiting is not None:
            yield _valid(*waiting)

    return outputs


def _valid(found: Mapping[str, Array], valid_B: np.ndarray) -> dict[str, np.ndarray]:
    return {name: value[valid_B] for name, value in jax.device_get(found).items()}

"""THE train step: one body for every objective, executor and mesh.

plan -> reduce the denominators -> add losses and gradients over micro-batches -> reduce once -> clip and update, or skip.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from electra_jax import rng
from electra_jax.parallel import sharding
from electra_jax.rng import StepRng
from electra_jax.train.optimizer import norm
from electra_jax.types import Array, Batch, Objective, TrainState

Reduce = Callable[[object], object]  # a tree of local sums -> the tree of global sums: a psum, or nothing


def local_sums(tree):
    """The reduce of an executor on one device, or of one whose arrays are global."""
    return tree


def init_state(root: Array, objective: Objective, optimizer: optax.GradientTransformation) -> TrainState:
    """The first state of a run whose randomness is all folded from the key `root`."""
    params = objective.init(root)
    # Three arrays, not one thrice: the state is donated, and a buffer can be given away once.
    step, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(step, rng.key_words(root), params, optimizer.init(params), skipped, in_a_row)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    accumulation_steps: int = 1,
    reduce: Reduce = local_sums,
    learning_rate: Callable[[Array], Array] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """train_step(state, batch) -> (state, metrics), pure. `batch` holds this device's rows; metrics are float32 scalars, among them
    `tokens`, the real ones of the global batch: padding is not counted.

    Micro-batches are strided ([B] -> [B/A, A], scanned over A), so that a sharded batch never moves. Means of means would be
    wrong where counts differ; the denominators are planned before the backward pass and reduced over all devices.
    `learning_rate` is told among the metrics alone. The optimizer is given the step, for its schedule; its own counts, which correct the
    bias of its means, are of updates, and a skipped step is none.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        plan, weights = objective.plan(batch, StepRng(rng.from_words(state.root), state.step), True)
        # Tokens are counted in float32, as the weights are, so that the devices sum all of them in one collective; exact up to 2^24.
        weights, num_tokens = reduce((weights, jnp.sum((batch.segments > 0).astype(jnp.float32))))

        scales = objective.scales(state.step)

        def loss_sums(params, micro_batch, micro_plan):
            terms = objective.terms(params, micro_batch, micro_plan)
            means = {name: value / jnp.maximum(weights[name], 1.0) for name, value in terms.losses.items()}
            return sum(scales[name] * mean for name, mean in means.items()), (means, terms.metrics)

        def gradient(params, *micro):
            sums, grads = jax.value_and_grad(loss_sums, has_aux=True)(params, *micro)
            return sums, sharding.like_params(grads)

        if accumulation_steps == 1:
            sums = gradient(state.params, batch, plan)
        else:
            strided = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulation_steps, *x.shape[1:]), 1, 0), (batch, plan))

            def add(sums, micro):
                return jax.tree.map(jnp.add, sums, gradient(state.params, *micro)), None

            shapes = jax.eval_shape(gradient, state.params, *jax.tree.map(lambda x: x[0], strided))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            sums, _ = jax.lax.scan(add, zeros, strided)
        (loss, (losses, metrics)), grads = reduce(sums)

        grad_norm = norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, opt_state = optax.with_extra_args_support(optimizer).update(grads, state.opt_state, state.params, step=state.step)
        params = optax.apply_updates(state.params, updates)
        params, opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state))
        skipped = (~finite).astype(jnp.int32)
        new_state = TrainState(
            step=state.step + 1,
            root=state.root,
            params=params,
            opt_state=opt_state,
            skipped=state.skipped + skipped,
            skipped_in_a_row=(state.skipped_in_a_row + skipped) * skipped,
        )
        out = {
            "loss": loss,
            **{f"{name}_loss": value for name, value in losses.items()},
            **{name: value / jnp.maximum(weight, 1.0) for name, (value, weight) in metrics.items()},
            "grad_norm": grad_norm,
            "tokens": num_tokens,
            "skipped": new_state.skipped,
            "skipped_in_a_row": new_state.skipped_in_a_row,
        }
        if learning_rate is not None:
            out["learning_rate"] = learning_rate(state.step)
        return new_state, {name: jnp.asarray(value, jnp.float32) for name, value in out.items()}

    return train_step

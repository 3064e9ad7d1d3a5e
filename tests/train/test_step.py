"""The train step: sums against means, dropout and skips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from electra_jax import rng
from electra_jax.train import optimizer, step
from electra_jax.train.config import OptimizerConfig, ScheduleConfig
from tests import tiny
from tests.tiny import ROOT


def init_state(goal, optimizer):
    return jax.jit(lambda key: step.init_state(key, goal, optimizer))(ROOT)


def objective():
    return tiny.objective(tiny.double() if jax.config.jax_enable_x64 else tiny.model())


SGD = optax.sgd(0.1)  # a scale error cannot hide behind Adam


@functools.cache
def train_step(accumulation_steps, double):
    return jax.jit(step.make_train_step(objective(), SGD, accumulation_steps))


def run(accumulation_steps, batch, num_steps=2):
    state = init_state(objective(), SGD)
    one = train_step(accumulation_steps, jax.config.jax_enable_x64)
    for _ in range(num_steps):
        state, metrics = one(state, batch)
    return state, metrics


def test_accumulation_equals_the_whole_batch_in_float64():
    with jax.enable_x64(True):
        whole, whole_metrics = run(1, tiny.batch())
        for accumulation_steps in (4,):
            state, metrics = run(accumulation_steps, tiny.batch())
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9, rtol=0), state.params, whole.params)
            assert {k: float(v) for k, v in metrics.items()} == pytest.approx({k: float(v) for k, v in whole_metrics.items()}, rel=1e-6)


def test_loss_is_mlm_plus_fifty_rtd_over_their_own_denominators():
    """Recomputed from per-token logits in numpy: MLM over chosen slots, RTD over every real token, [CLS] and [SEP] too."""
    with jax.enable_x64(True):
        goal, batch = objective(), tiny.batch()
        state = init_state(goal, optax.sgd(0.0))
        plan, weights = jax.jit(lambda batch: goal.plan(batch, rng.StepRng(ROOT, state.step), True))(batch)
        terms = jax.jit(goal.terms)(state.params, batch, plan)
        _, metrics = jax.jit(step.make_train_step(goal, optax.sgd(0.0)))(state, batch)
        logits, replaced = np.asarray(terms.outputs["logits"]), np.asarray(terms.outputs["replaced"])
        real = batch.tokens > 0
        rtd = np.logaddexp(0, np.where(replaced, -logits, logits))[real].mean()
        assert float(weights["rtd"]) == real.sum()
        assert float(metrics["rtd_loss"]) == pytest.approx(rtd, rel=1e-6)
        mlm = float(terms.losses["mlm"]) / float(np.asarray(plan.generator.slots.weights).sum())
        assert float(metrics["loss"]) == pytest.approx(mlm + 50 * rtd, rel=1e-6)
        assert 3.5 < mlm < 5  # about ln 64 at the start
        # No discriminator gradient reaches the generator: sampling stops it.
        grads = jax.jit(jax.grad(lambda p: goal.terms(p, batch, plan).losses["rtd"]))(state.params)
        assert all(not np.abs(g).max() for g in jax.tree.leaves(grads["generator"]))


def test_non_finite_steps_change_nothing_and_are_counted():
    good = tiny.batch()
    start, _ = run(1, good, num_steps=1)
    poisoned = start.replace(params={**start.params, "embeddings": jax.tree.map(lambda x: x * jnp.nan, start.params["embeddings"])})
    one = train_step(1, False)
    after, metrics = one(poisoned, good)
    jax.tree.map(np.testing.assert_array_equal, after.params, poisoned.params)
    after, metrics = one(after, good)
    assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (3, 2, 2)
    healed, _ = one(after.replace(params=start.params), good)
    assert (int(healed.skipped), int(healed.skipped_in_a_row)) == (2, 0)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(healed.params), jax.tree.leaves(start.params), strict=True))


def test_the_schedule_ends_with_the_run_also_after_skipped_steps():
    """The rate that is told is the rate that is applied: both follow the run's step, not the updates that were made."""
    recipe = OptimizerConfig(learning_rate=0.5, weight_decay=0.0, clip_norm=0.0)
    rule, factor = optimizer.make_optimizer(recipe, ScheduleConfig(0), 4), optimizer.schedule(ScheduleConfig(0), 4)
    one = jax.jit(step.make_train_step(objective(), rule, learning_rate=lambda at: 0.5 * factor(at)))
    state, batch, told, moved = init_state(objective(), rule), tiny.batch(), [], []
    for number in range(5):
        given = state.replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params)) if number == 1 else state
        after, metrics = one(given, batch)
        told.append(float(metrics["learning_rate"]))
        moved.append(max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, (after.params, given.params)), strict=True)))
        state = after.replace(params=state.params) if number == 1 else after
    assert told == [0.5, 0.375, 0.25, 0.125, 0.0]
    assert moved[4] == 0 and 0 < moved[3] <= 0.13 / (1 - 0.9)  # Adam's step is about the rate


def test_a_step_is_a_function_of_state_and_batch():
    a, _ = run(1, tiny.batch(), num_steps=3)
    b, _ = run(1, tiny.batch(), num_steps=3)
    jax.tree.map(np.testing.assert_array_equal, a, b)

"""Several objectives at once."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax import rng
from electra_jax.cli import UserError
from electra_jax.objectives import mixture
from electra_jax.objectives.config import ObjectiveConfig
from electra_jax.recipe import Recipe
from electra_jax.train import evaluation, step
from electra_jax.train.config import ScheduleConfig, TrainConfig
from tests import tiny
from tests.objectives import equations
from tests.train.test_step import SGD

TWO = "electra=2,mlm=1>0.5@10"


@pytest.mark.objectives
def test_the_loss_is_the_weighted_sum_of_its_parts():
    with jax.enable_x64(True):
        model = tiny.double(dropout=0.0, attention_dropout=0.0)
        goal, batch = equations.make("mixture", model, mixture=TWO), tiny.batch()
        parts = {name: equations.make(name, model) for name in ("electra", "mlm")}
        state = jax.jit(lambda root: step.init_state(root, goal, SGD))(tiny.ROOT).replace(step=jnp.int32(4))
        assert set(state.params["discriminator"]) >= {"head", "lm_head", "layers"}
        _, metrics = jax.jit(step.make_train_step(goal, SGD))(state, batch)
        plans, weights = goal.plan(batch, rng.StepRng(rng.from_words(state.root), state.step), True)
        total = 0.0
        for name, weight in (("electra", 2.0), ("mlm", 0.8)):
            terms = parts[name].terms(state.params, batch, plans[name])
            for term, value in terms.losses.items():
                mean = float(value / weights[f"{name}.{term}"])
                assert float(metrics[f"{name}.{term}_loss"]) == pytest.approx(mean, rel=1e-6)
                total += weight * parts[name].scales(0)[term] * mean
        assert float(metrics["loss"]) == pytest.approx(total, rel=1e-6)
        # Each part masks for itself.
        slots = [plans["electra"].generator.slots.positions, plans["mlm"].slots.positions]
        assert np.any(slots[0] != slots[1])


def test_weights_follow_their_schedule():
    goal = equations.make("mixture", tiny.model(), mixture=TWO)
    found = [float(goal.scales(at)["mlm.mlm"]) for at in (0, 5, 10, 1000, math.inf)]
    assert found == pytest.approx([1, 0.75, 0.5, 0.5, 0.5])
    assert goal.scales(7)["electra.rtd"] == 100.0
    with pytest.raises(UserError, match="over 10 steps and train.steps is 8"):
        Recipe(objective=ObjectiveConfig(name="mixture", mixture=TWO), train=TrainConfig(steps=8), schedule=ScheduleConfig(warmup_steps=0))


def test_each_part_is_measured_and_shown_by_its_own_view():
    goal, batch = equations.make("mixture", tiny.model(), mixture=TWO), tiny.batch()
    params = jax.jit(goal.init)(tiny.ROOT)
    metrics = evaluation.evaluate(goal, jax.jit(evaluation.make_eval_step(goal)), params, [(batch, np.ones(8, bool))])
    metrics["eval/unigram_entropy"] = 4.0
    line = goal.view.headline(metrics)
    assert line.startswith("electra: held-out MLM loss ") and "; mlm: held-out MLM loss " in line and "RTD AUC" in line
    assert goal.view.verdict(metrics).startswith("electra: On held-out text")
    assert set(goal.view.shown) <= metrics.keys()
    curves = {curve.metric for panel in goal.view.panels for curve in panel.curves if curve.metric.startswith("eval/")}
    assert curves <= metrics.keys()
    run = type("Run", (), dict(total_steps=10, warmup_steps=1, positions="learned", optimizer="adamw"))
    assert [name.split(".")[0] for name, _ in goal.view.warnings({**metrics, "eval/unigram_entropy": 1.0}, 10, run)] == ["electra", "mlm"]


def test_parts_that_want_other_heads_of_one_name_are_refused():
    with pytest.raises(UserError, match="coco_clm wants another lm_head of the discriminator"):
        mixture.networks(ObjectiveConfig(name="mixture", mixture="mlm=1,coco_clm=1"))

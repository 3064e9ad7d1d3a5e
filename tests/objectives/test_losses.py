"""Every objective's losses and gradients against its equations, written once more in plain.py, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax.models import electra, sharing
from electra_jax.objectives.config import MaskingConfig
from tests import tiny
from tests.objectives import equations
from tests.objectives.equations import Case


def model_of(**fields):
    return tiny.double(dropout=0.0, attention_dropout=0.0, **fields)


ONE_OF_EACH_KIND = ("electra", "mlm", "electric")  # two networks, one, towers that see in one direction


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ONE_OF_EACH_KIND else pytest.mark.objectives) for name in equations.EQUATIONS]
)
def test_losses_and_gradients_follow_the_equations(name):
    with jax.enable_x64(True):
        masking_config, fields = equations.SETTINGS.get(name, (MaskingConfig(rate=0.3), {}))
        goal = equations.make(name.split(",")[0], model_of(), masking_config, **fields)
        equations.compare(goal, equations.EQUATIONS[name], model_of())


def apart(c: Case):
    of_generator = c.params["generator"]["embeddings"]
    return c.mean(c.fill(embeddings=of_generator), c.chosen) + 50 * c.mean(c.detect(), c.real)


def one(c: Case):
    body = {name: tree for name, tree in c.params["discriminator"].items() if name != "head"}
    c.params = {**c.params, "generator": {**body, "head": c.params["generator"]["head"]}}
    return equations.EQUATIONS["electra"](c)


def differences(c: Case):
    base, own = c.params["generator"]["embeddings"], c.params["embeddings"]
    summed = {**own, **{name: jax.lax.stop_gradient(base[name]) + own[name] for name in ("word", "position")}}
    return c.mean(c.fill(embeddings=base), c.chosen) + 50 * c.mean(c.detect(summed), c.real)


@pytest.mark.parametrize(
    "kind, equation",
    [
        pytest.param("none", apart, marks=pytest.mark.objectives),
        pytest.param("all", one, marks=pytest.mark.objectives),
        ("gdes", differences),
    ],
)
def test_what_networks_share(kind, equation):
    with jax.enable_x64(True):
        model = model_of(sharing=kind, generator_hidden_fraction=1.0 if kind == "all" else 0.5)
        equations.compare(equations.make("electra", model), equation, model)


@pytest.mark.objectives
def test_gdes_begins_as_the_generators_embeddings_and_the_discriminator_leaves_them_alone():
    with jax.enable_x64(True):
        model = model_of(sharing="gdes")
        goal, batch = equations.make("electra", model), tiny.batch()
        params = jax.jit(goal.init)(tiny.ROOT)
        assert not params["embeddings"]["word"].any() and not params["embeddings"]["position"].any()
        grads = jax.jit(jax.grad(lambda p: jnp.sum(electra.discriminator_apply(p, model, batch) ** 2)))(params)
        assert all(not x.any() for x in jax.tree.leaves(grads["generator"]))
        assert np.abs(grads["embeddings"]["word"]).max() > 0
        # What goes out has one table a network, and scores the same.
        r = np.random.default_rng(0)
        params = jax.tree.map(lambda x: x + r.normal(size=x.shape), params)
        slots = jnp.tile(jnp.array([[1, 2]]), (8, 1))
        applies = {"discriminator": electra.discriminator_apply, "generator": lambda p, m, b: electra.generator_apply(p, m, b, slots)}
        for network, apply in applies.items():
            folded, shape = sharing.alone(params, model, network)
            assert set(folded) == {"embeddings", network} and shape == dataclasses.replace(model, sharing="shared")
            np.testing.assert_array_equal(apply(folded, shape, batch), apply(params, model, batch))

"""Layers stacked by kind: how they are run may not change what they compute."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax import rng
from electra_jax.models import electra
from tests import tiny

TINY = tiny.model(embedding_size=16, hidden_size=32, num_layers=3)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda key: electra.init_params(key, TINY))(tiny.ROOT)


def test_scanned_unrolled_and_rematerialised_layers_agree(params):
    batch = tiny.packed()
    seeds = rng.StepRng(rng.root_key(1), jnp.int32(0)).seeds("d", batch.row)

    def loss(params, config):
        return jnp.sum(electra.discriminator_apply(params, config, batch, seeds) ** 2)

    reference, reference_grads = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, TINY)
    for change in (dict(scan_layers=True), dict(remat="full"), dict(remat="dots", scan_layers=True)):
        value, grads = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, dataclasses.replace(TINY, **change))
        assert value == pytest.approx(float(reference), rel=1e-5)
        scale = max(np.max(np.abs(g)) for g in jax.tree.leaves(reference_grads))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), grads, reference_grads)


def test_layers_of_a_stack_start_different(params):
    kernel = params["discriminator"]["layers"]["attention"]["query"]["kernel"]
    assert kernel.shape == (3, 32, 32) and not np.allclose(kernel[0], kernel[1])


def test_unrolled_and_scanned_programs_have_what_they_say(params):
    """One inlined body for all layers in the one, and a loop in the other."""

    def program(**changes):
        config = dataclasses.replace(TINY, **changes)
        return jax.jit(lambda p: electra.discriminator_apply(p, config, tiny.packed())).lower(params).as_text()

    unrolled, scanned = program(), program(scan_layers=True)
    assert unrolled.count("call @layer") == 3 and "stablehlo.while" not in unrolled
    assert "stablehlo.while" in scanned

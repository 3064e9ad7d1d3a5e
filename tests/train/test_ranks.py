"""Effective ranks against singular values in float64, and what is left out of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax.models import electra
from electra_jax.parallel.mesh import make_mesh
from electra_jax.train import ranks
from tests import tiny

RNG = np.random.default_rng(0)


def participation_ratio(x_NxH: np.ndarray) -> float:
    """(sum of s^2)^2 / (sum of s^4) of the singular values of the centred vectors."""
    x_NxH = np.asarray(x_NxH, np.float64)
    squares = np.linalg.svd(x_NxH - x_NxH.mean(0), compute_uv=False) ** 2
    return squares.sum() ** 2 / (squares**2).sum()


@pytest.mark.parametrize("offset", [0.0, 100.0], ids=["centred", "far from zero"])
def test_moments_of_parts_give_the_rank_of_the_whole(offset):
    x_NxH = (RNG.normal(size=(300, 12)) * np.linspace(0.1, 2, 12) + offset).astype(np.float32)
    counted = RNG.random(300) < 0.7
    parts = [ranks.Moments.of(jnp.asarray(x_NxH[i : i + 75]), jnp.asarray(counted[i : i + 75])) for i in range(0, 300, 75)]
    nothing = jax.tree.map(jnp.zeros_like, parts[0])
    assert float(sum(parts, nothing).rank()) == pytest.approx(participation_ratio(x_NxH[counted]), rel=1e-4)


def test_the_rank_of_known_shapes():
    line = np.outer(RNG.normal(size=50), RNG.normal(size=8))
    everywhere = np.concatenate([np.eye(8), -np.eye(8)])
    for x_NxH, wanted in ((line, 1.0), (everywhere, 8.0), (np.ones((9, 8)), 0.0)):
        found = ranks.Moments.of(jnp.asarray(x_NxH, jnp.float32), jnp.ones(len(x_NxH), bool)).rank()
        assert float(found) == pytest.approx(wanted, rel=1e-4)


@pytest.fixture(scope="module")
def setting():
    model = tiny.model(num_layers=3, dropout=0.3)
    params = jax.jit(lambda key: electra.init_params(key, model))(tiny.ROOT)
    return model, params, tiny.packed()


def states(model, params, batch, network) -> list[np.ndarray]:
    return list(np.asarray(jax.jit(lambda params: electra.each_layer(params, model, batch, lambda x: x, network))(params)))


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_each_layer_is_seen_once_and_in_order(setting, network):
    """A model of the first layers alone ends where the whole one is at that layer; scanned layers are the same layers."""
    model, params, batch = setting
    found = states(model, params, batch, network)
    count = model.encoder(network).num_layers
    assert len(found) == count + 1
    np.testing.assert_allclose(found[-1], electra.hidden_states(params, model, batch, None, network).reshape(found[-1].shape), atol=1e-6)
    scanned = states(tiny.model(num_layers=3, scan_layers=True), params, batch, network)
    np.testing.assert_allclose(np.stack(scanned), np.stack(found), atol=1e-5)
    if network == "discriminator":
        first = {**params, network: {**params[network], "layers": jax.tree.map(lambda x: x[:1], params[network]["layers"])}}
        lowest = electra.hidden_states(first, tiny.model(num_layers=1), batch)
        np.testing.assert_allclose(found[1], np.asarray(lowest).reshape(found[1].shape), atol=1e-5)


def test_ranks_are_of_real_tokens_in_valid_rows(setting):
    model, params, batch = setting
    rows = batch.tokens.shape[0]
    padded = batch.replace(segments=np.where(np.arange(batch.tokens.shape[1]) < 14, batch.segments, 0))
    valid = np.arange(rows) != 1
    heldout = [(padded, valid), (batch, np.zeros(rows, bool))]
    first = jax.tree.map(lambda x: x * 1.5, params)
    found = ranks.make_ranks(model, ["generator", "discriminator"], make_mesh(1, 1, 1, jax.devices()[:1]), heldout, lambda: first)(params)
    for network in ("generator", "discriminator"):
        for layer, x_NxH in enumerate(states(model, params, padded, network)):
            x_BxLxH, real = x_NxH.reshape(rows, -1, x_NxH.shape[-1])[valid], (padded.segments > 0)[valid]
            assert found[f"eval/rank/{network}/{layer}"] == pytest.approx(participation_ratio(x_BxLxH[real]), rel=1e-3)
            means = np.stack([x[r].mean(0) for x, r in zip(x_BxLxH, real, strict=True)])
            assert found[f"eval/rank_of_means/{network}/{layer}"] == pytest.approx(participation_ratio(means), rel=1e-3)
        random = states(model, first, padded, network)[-1].reshape(rows, -1, x_NxH.shape[-1])[valid][real]
        assert found[f"eval/random_rank/{network}/{layer}"] == pytest.approx(participation_ratio(random), rel=1e-3)


def test_a_layer_that_lost_its_input_has_rank_one(setting):
    """The last LayerNorm lets one direction through."""
    model, params, batch = setting
    scale = params["discriminator"]["layers"]["ffn_norm"]["scale"]
    one = scale.at[-1].set(jnp.zeros(scale.shape[1]).at[0].set(1.0))
    lost = jax.tree.map(lambda x: one if x is scale else x, params)
    found = ranks.make_ranks(
        model, ["discriminator"], make_mesh(1, 1, 1, jax.devices()[:1]), [(batch, np.ones(len(batch.tokens), bool))], lambda: params
    )(lost)
    assert found["eval/rank/discriminator/3"] == pytest.approx(1.0, abs=1e-3)
    assert (
        found["eval/rank/discriminator/2"] == pytest.approx(found["eval/random_rank/discriminator/2"])
        and found["eval/rank/discriminator/2"] > 3
    )

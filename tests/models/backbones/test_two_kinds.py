"""A backbone is one file and one line of BACKBONES: a toy with two kinds of layers is trained, cut, decayed and counted by its paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from electra_jax.models import backbones, costs, electra
from electra_jax.parallel import mesh, sharding
from electra_jax.rng import StepRng
from electra_jax.train import optimizer, step
from electra_jax.train.config import OptimizerConfig, ScheduleConfig
from tests import tiny
from tests.toys import two_kinds

KINDS = ("attention_layers", "token_layers")


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(backbones.BACKBONES, "two_kinds", "tests.toys.two_kinds")


def config(**changes):
    return tiny.model(**{"backbone": "two_kinds", "num_layers": 4, **changes})


# The first layer of one kind and the last of the other stand still.
RATES = ((r"discriminator/token_layers/", (0.0, 1.0)), (r"discriminator/attention_layers/", (1.0, 0.0)))


def trained(model, devices=None):
    """(losses, the last state) of some steps on one batch, by Muon and AdamW."""
    goal = tiny.objective(model)
    rule = optimizer.make_optimizer(OptimizerConfig(name="muon", learning_rate=0.01, rates=RATES), ScheduleConfig(1), 100)
    init, one = (lambda root: step.init_state(root, goal, rule)), step.make_train_step(goal, rule)
    batch = tiny.batch()
    if devices is None:
        state, run = jax.jit(init)(tiny.ROOT), jax.jit(one)
    else:
        where = sharding.shardings(jax.eval_shape(init, tiny.ROOT), devices)
        state = jax.jit(init, out_shardings=where)(tiny.ROOT)
        run = mesh.on_mesh(jax.jit(one, in_shardings=(where, mesh.by_rows(devices)), out_shardings=(where, None)), devices)
        batch = mesh.to_devices(batch, devices)
    losses = []
    for _ in range(6):
        state, metrics = run(state, batch)
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.fixture(scope="module")
def plain():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones.BACKBONES, "two_kinds", "tests.toys.two_kinds")
        return trained(config())


def test_it_trains(plain):
    losses, state = plain
    assert losses[-1] < losses[0] and np.isfinite(losses).all() and int(state.skipped) == 0
    for network in ("generator", "discriminator"):
        assert set(state.params[network]) >= {*KINDS, "head"} and "layers" not in state.params[network]
        assert {x.shape[0] for kind in KINDS for x in jax.tree.leaves(state.params[network][kind])} == {2}


def test_rates_of_each_layer_of_a_kind(plain):
    start, after = jax.jit(lambda key: electra.init_params(key, config()))(tiny.ROOT)["discriminator"], plain[1].params["discriminator"]
    for kind, still in (("token_layers", 0), ("attention_layers", 1)):
        for x, y in zip(jax.tree.leaves(start[kind]), jax.tree.leaves(after[kind]), strict=True):
            np.testing.assert_array_equal(y[still], x[still])
            assert np.any(y[1 - still] != x[1 - still])


def test_rematerialised_and_cut_over_devices_it_is_the_same(plain):
    losses, state = trained(config(remat="dots"), mesh.make_mesh(1, 2, 2, jax.devices()[:4]))
    np.testing.assert_allclose(losses, plain[0], rtol=1e-4)
    kernel = state.params["discriminator"]["token_layers"]["ffn"]["output"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "fsdp")


def test_scanned_and_rematerialised_it_has_the_same_gradient(plain):
    batch, params = tiny.packed(), plain[1].params
    seeds = StepRng(tiny.ROOT, jnp.int32(0)).seeds("discriminator", batch.row)

    def gradient(model):
        return jax.jit(jax.grad(lambda params: jnp.sum(electra.discriminator_apply(params, model, batch, seeds) ** 2)))(params)

    wanted, found = gradient(config()), gradient(config(scan_layers=True, remat="full"))
    scale = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(wanted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-5 * scale), wanted, found)


def test_tables_of_paths_know_its_layers():
    params = jax.eval_shape(lambda key: electra.init_params(key, config()), tiny.ROOT)
    paths = {path for path in jax.tree.leaves(optimizer.paths(params)) if path.startswith("discriminator/") and "_layers/" in path}
    matrices = {path for path in paths if path.endswith("/kernel")}
    assert len(matrices) == 6 + 2 and all(sharding.is_stacked(path) for path in paths)

    def matched(regex):
        found = optimizer.matching(regex)(params)
        return {path for path, yes in zip(*map(jax.tree.leaves, (optimizer.paths(params), found)), strict=True) if yes} & paths

    assert matched(optimizer.LAYER_MATRICES) == matrices
    assert matched(optimizer.NO_DECAY) == paths - matrices
    assert all(sharding.spec(path, (2, 16, 16), 2) == PartitionSpec(None, "fsdp") for path in matrices)


def test_it_is_counted():
    shapes = jax.eval_shape(lambda key: electra.init_params(key, config()), tiny.ROOT)
    assert sum(costs.num_params(config()).values()) == sum(x.size for x in jax.tree.leaves(shapes))
    of_four, of_two = (costs.forward_flops(config(num_layers=layers), "discriminator", 16) for layers in (4, 2))
    assert 0 < of_two < of_four < costs.forward_flops(config(backbone="transformer"), "discriminator", 16)


@pytest.mark.parametrize("num_layers, period", [(4, 2), (3, 3), (1, 1)])
def test_layers_follow_the_pattern_scanned_or_not(num_layers, period):
    """Against the blocks applied one by one. Three layers repeat nothing, and are unrolled."""
    model = config(num_layers=num_layers, dropout=0.0, attention_dropout=0.0, embedding_size=16)
    network, batch = model.discriminator, tiny.packed()
    params = jax.jit(lambda key: two_kinds.BACKBONE.init(key, network))(tiny.ROOT)
    x_NxH = jnp.asarray(np.random.default_rng(0).normal(size=(batch.tokens.size, 16)), jnp.float32)
    wanted = x_NxH
    for place in range(num_layers):
        name = KINDS[place % 2]
        one = jax.tree.map(lambda x: x[place // 2], params[name])
        wanted = two_kinds.KINDS[name].block(network).apply({"params": one}, wanted, batch, None, place + 1)
    for scan_layers in (False, True):
        scanned = config(**{**vars(model), "scan_layers": scan_layers}).discriminator
        apply = jax.jit(lambda params, x: two_kinds.BACKBONE.apply(params, scanned, x, batch, None))
        np.testing.assert_allclose(apply(params, x_NxH), wanted, atol=2e-5)
        assert ("scan[" in str(jax.make_jaxpr(apply)(params, x_NxH))) == (scan_layers and period < max(num_layers, 2))

"""The two networks: what is shared, how they start, and what may not depend on how they are computed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from electra_jax import rng
from electra_jax.cli import UserError
from electra_jax.models import electra
from electra_jax.types import Batch
from tests import tiny

TINY = tiny.model(embedding_size=16, hidden_size=32, num_layers=3)


init = lambda config, seed=0: jax.jit(lambda key: electra.init_params(key, config))(rng.root_key(seed))  # noqa: E731


@pytest.fixture(scope="module")
def params():
    return init(TINY)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_packed_document_is_computed_as_if_alone(positions):
    config = dataclasses.replace(TINY, positions=positions)
    params = init(config)
    batch = tiny.packed()
    hidden = jax.jit(lambda batch: electra.hidden_states(params, config, batch))
    together = hidden(batch)
    for b in range(4):
        for segment in (1, 2):
            place = np.flatnonzero(batch.segments[b] == segment)
            n = len(place)
            one = Batch(
                batch.tokens[b : b + 1, place],
                np.ones((1, n), np.int32),
                np.arange(n, dtype=np.int32)[None],
                np.zeros((1, n), np.int32),
                np.zeros(1, np.int32),
            )
            one = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, 12 - n))) if x.ndim == 2 else x, one)
            np.testing.assert_allclose(together[b, place], hidden(one)[0, :n], atol=2e-5)


def test_all_embeddings_are_shared_and_both_networks_reach_them(params):
    """google-research/electra run_pretraining.py, shared_embeddings: word, position and type tables and the LayerNorm exist once, and the
    word table is the output layer too."""
    assert set(params) == {"embeddings", "generator", "discriminator"}
    assert set(params["embeddings"]) == {"word", "position", "type", "norm"}
    batch = tiny.packed()
    slots = jnp.tile(jnp.array([[1, 3]]), (4, 1))
    g = jax.jit(jax.grad(lambda p: jnp.sum(electra.generator_apply(p, TINY, batch, slots) ** 2)))(params)
    d = jax.jit(jax.grad(lambda p: jnp.sum(electra.discriminator_apply(p, TINY, batch) ** 2)))(params)
    for grads in (g, d):
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads["embeddings"]))
    unused = np.setdiff1d(np.arange(tiny.VOCAB_SIZE), np.unique(batch.tokens))
    assert np.abs(g["embeddings"]["word"][unused]).max() > 0  # through the softmax
    assert np.abs(d["embeddings"]["word"][unused]).max() == 0


def test_initial_values_follow_the_published_initializers():
    """google-research/electra model/modeling.py: truncated normal (two deviations, not rescaled), but Glorot uniform where dense layers
    are given no initializer: the projections and the RTD output."""
    config = dataclasses.replace(TINY, vocab_size=5000, embedding_size=64, hidden_size=128, head_size=32, generator_hidden_fraction=0.25)
    params = init(config, 3)
    shape = stats.truncnorm(-2, 2, scale=0.02)
    d = params["discriminator"]
    for table in (params["embeddings"]["word"], d["layers"]["ffn"]["intermediate"]["kernel"], d["head"]["dense"]["kernel"]):
        assert stats.kstest(np.ravel(table)[:20000], shape.cdf).pvalue > 1e-3
    glorot = {(64, 128): d["project"], (64, 32): params["generator"]["project"], (128, 1): d["head"]["out"]}
    for (fan_in, fan_out), layer in glorot.items():
        limit = (6 / (fan_in + fan_out)) ** 0.5
        assert stats.kstest(np.ravel(layer["kernel"]), stats.uniform(-limit, 2 * limit).cdf).pvalue > 1e-3
    assert all(np.all(leaf == 0) for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "bias")


def test_sinusoidal_positions_start_as_sinusoids_and_learn():
    config = dataclasses.replace(TINY, positions="sinusoidal_init")
    params = init(config)
    table = np.asarray(params["embeddings"]["position"])
    np.testing.assert_allclose(table[:, 0], 0.2 * np.sin(np.arange(32)), atol=1e-6)
    np.testing.assert_allclose(table[:, 1], 0.2 * np.cos(np.arange(32)), atol=1e-6)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(electra.discriminator_apply(p, config, tiny.packed()) ** 2)))(params)
    assert np.abs(grads["embeddings"]["position"]).max() > 0
    assert "position" not in init(dataclasses.replace(TINY, positions="rotary"))["embeddings"]


def test_bfloat16_policy_keeps_parameters_logits_and_norms_wide():
    config = dataclasses.replace(TINY, dtype="bfloat16")
    params = init(config)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    batch = tiny.packed()
    apply = jax.jit(electra.discriminator_apply, static_argnums=1)
    logits = apply(params, config, batch)
    assert logits.dtype == jnp.float32
    hidden = jax.eval_shape(lambda p: electra.hidden_states(p, config, batch, network="generator"), params)
    assert hidden.dtype == jnp.bfloat16
    exact = apply(params, TINY, batch)
    np.testing.assert_allclose(logits[batch.segments > 0], exact[batch.segments > 0], atol=0.05)


def test_networks_are_named_by_whoever_asks():
    """One network with an MLM head, of the model's own sizes; and a second generator beside ELECTRA's two."""
    config = tiny.model()
    params = jax.jit(lambda key: electra.init_params(key, config, {"encoder": {"head": "mlm"}}))(tiny.ROOT)
    assert set(params) == {"embeddings", "encoder"} and set(params["encoder"]["head"]) == {"dense", "norm", "bias"}
    batch, slots = tiny.packed(), jnp.tile(jnp.array([[1, 3]]), (4, 1))
    logits = electra.generator_apply(params, config, batch, slots, network="encoder")
    nll, _, _ = electra.generator_nll(params, config, batch, slots, jnp.zeros((4, 2), jnp.int32), network="encoder")
    assert logits.shape == (4, 2, tiny.VOCAB_SIZE)
    np.testing.assert_allclose(nll, -jax.nn.log_softmax(logits)[..., 0], atol=1e-5)
    assert electra.hidden_states(params, config, batch, network="encoder").shape == (*batch.tokens.shape, config.hidden_size)
    scores = jax.jit(lambda key: electra.init_params(key, config, {"judge": {"head": "rtd"}}))(tiny.ROOT)
    assert electra.discriminator_apply(scores, config, batch, network="judge").shape == batch.tokens.shape


@pytest.mark.parametrize("task, places", [("classification", 1), ("sequence_classification", 2)])
def test_dropout_within_the_head_of_a_text(params, task, places):
    """The published head drops out of its input, and transformers' also of what its hidden layer gives: in training alone."""
    config, batch = dataclasses.replace(TINY, dropout=0.2), tiny.packed()
    head = jax.jit(lambda key: electra.init_task(key, config, task, 3))(tiny.ROOT)
    params, seeds = {**params, task: head}, jnp.arange(8, dtype=jnp.uint32).reshape(4, 2)
    for train in (True, False):
        hidden = electra.hidden_states(params, config, batch, seeds if train else None)[:, 0]
        masks = [rng.dropout(jnp.ones((4, 32)), rng.site_seeds(seeds, 0, 1 + place), 0.2) if train else 1.0 for place in range(places)]
        head, masks = jax.tree.map(np.float64, (head, masks))
        x = np.float64(hidden) * masks[0]
        if places == 2:
            x = x @ head["dense"]["kernel"] + head["dense"]["bias"]
            x = x * stats.norm.cdf(x) * masks[1]
        wanted = x @ head["out"]["kernel"] + head["out"]["bias"]
        np.testing.assert_allclose(electra.task_apply(params, config, batch, task, seeds if train else None), wanted, atol=1e-5)


def test_what_a_model_lacks_is_said(params):
    batch = tiny.packed()
    encoder = {"embeddings": params["embeddings"], "generator": {k: v for k, v in params["generator"].items() if k != "head"}}
    with pytest.raises(UserError, match="no network 'discriminator': it has generator"):
        electra.discriminator_apply(encoder, TINY, batch)
    with pytest.raises(UserError, match="generator has no head"):
        electra.generator_apply(encoder, TINY, batch, jnp.ones((4, 1), jnp.int32))
    with pytest.raises(UserError, match="no head for 'sequence_classification': it has none"):
        electra.task_apply(params, TINY, batch, "sequence_classification")


def test_a_position_past_the_table_is_refused(params):
    batch = tiny.packed()
    far = batch.replace(positions=batch.positions + TINY.max_length)
    with pytest.raises(UserError, match=f"the model has {TINY.max_length}: cut the rows"):
        electra.hidden_states(params, TINY, far)
    constant = jax.tree.map(jnp.asarray, batch)  # device arrays within a jitted function, whose own operations are traced
    assert np.isfinite(jax.jit(lambda p: electra.hidden_states(p, TINY, constant))(params)).all()
    traced = jax.jit(lambda p, b: electra.hidden_states(p, TINY, b))(params, far)  # there no value can be refused
    assert np.isnan(traced[batch.segments > 0]).all()
    assert np.isfinite(electra.hidden_states(jax.tree.map(np.asarray, params), TINY, batch)).all()  # numpy's arrays do as well
    rotary = dataclasses.replace(TINY, positions="rotary")
    assert np.isfinite(electra.hidden_states(init(rotary), rotary, far)).all()

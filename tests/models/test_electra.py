"""The two networks: what is shared, how they start, and what may not depend on how they are computed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from electra_jax import rng
from electra_jax.models import attention, backward, electra
from electra_jax.models.config import PRESETS
from electra_jax.types import Batch

TINY = dataclasses.replace(
    PRESETS["small"],
    vocab_size=97,
    max_length=32,
    embedding_size=16,
    hidden_size=32,
    num_layers=3,
    head_size=8,
    generator_hidden_fraction=0.5,
)


init = lambda config, seed=0: jax.jit(lambda key: electra.init_params(key, config))(rng.root_key(seed))  # noqa: E731


def packed_batch(B=4, L=24, vocab_size=97, seed=0) -> Batch:
    """Rows of two documents of different lengths with padding at the end."""
    r = np.random.default_rng(seed)
    tokens, segments, positions = (np.zeros((B, L), np.int32) for _ in range(3))
    for b in range(B):
        n, m = r.integers(5, 11), r.integers(5, 11)
        tokens[b, : n + m] = r.integers(5, vocab_size, n + m)
        tokens[b, [0, n]], tokens[b, [n - 1, n + m - 1]] = 2, 3
        segments[b, :n], segments[b, n : n + m] = 1, 2
        positions[b, : n + m] = [*range(n), *range(m)]
    return Batch(tokens, segments, positions, np.zeros_like(tokens), np.arange(B, dtype=np.int32))


@pytest.fixture(scope="module")
def params():
    return init(TINY)


def test_scanned_unrolled_and_rematerialised_layers_agree(params):
    batch = packed_batch()
    seeds = rng.StepRng(rng.root_key(1), jnp.int32(0)).seeds("d", batch.row)

    def loss(params, config):
        return jnp.sum(electra.discriminator_apply(params, config, batch, seeds) ** 2)

    reference, reference_grads = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, TINY)
    for change in (dict(scan_layers=True), dict(remat="full"), dict(remat="dots", scan_layers=True)):
        value, grads = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, dataclasses.replace(TINY, **change))
        assert value == pytest.approx(float(reference), rel=1e-5)
        scale = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(reference_grads))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), grads, reference_grads)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_packed_document_is_computed_as_if_alone(positions):
    config = dataclasses.replace(TINY, positions=positions)
    params = init(config)
    batch = packed_batch()
    hidden = jax.jit(lambda batch: electra.hidden_states(params, config, "discriminator", batch))
    together = hidden(batch).reshape(4, 24, -1)
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
            np.testing.assert_allclose(together[b, place], hidden(one)[:n], atol=2e-5)


def test_all_embeddings_are_shared_and_both_networks_reach_them(params):
    """Trap 4 of the recipe: word, position and type tables and the LayerNorm exist once, and the word table is the output layer."""
    assert set(params) == {"embeddings", "generator", "discriminator"}
    assert set(params["embeddings"]) == {"word", "position", "type", "norm"}
    batch = packed_batch()
    slots = jnp.tile(jnp.array([[1, 3]]), (4, 1))
    g = jax.jit(jax.grad(lambda p: jnp.sum(electra.generator_apply(p, TINY, batch, slots) ** 2)))(params)
    d = jax.jit(jax.grad(lambda p: jnp.sum(electra.discriminator_apply(p, TINY, batch) ** 2)))(params)
    for grads in (g, d):
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads["embeddings"]))
    unused = np.setdiff1d(np.arange(97), np.unique(batch.tokens))
    assert np.abs(g["embeddings"]["word"][unused]).max() > 0  # through the softmax
    assert np.abs(d["embeddings"]["word"][unused]).max() == 0


def test_initial_values_follow_the_published_initializers():
    """Trap 8: truncated normal (two deviations, not rescaled) but Glorot uniform on the projections and the RTD output."""
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


def test_layers_of_a_stack_start_different(params):
    kernel = params["discriminator"]["layers"]["attention"]["query"]["kernel"]
    assert kernel.shape == (3, 32, 32) and not np.allclose(kernel[0], kernel[1])


def test_rotary_scores_depend_on_distance_alone():
    r = np.random.default_rng(0)
    q, k = (np.tile(r.normal(size=(1, 1, 2, 8)).astype(np.float32), (1, 12, 1, 1)) for _ in range(2))
    place = np.arange(12, dtype=np.int32)[None]
    scores = np.einsum("blhd,bmhd->hlm", attention.rotate(q, place), attention.rotate(k, place))
    for distance in range(-11, 12):
        diagonal = np.stack([np.diagonal(s, distance) for s in scores])
        np.testing.assert_allclose(diagonal, np.broadcast_to(diagonal[:, :1], diagonal.shape), atol=1e-5)
    assert np.ptp(scores[0, 0]) > 0.1


def test_gelu_is_exact():
    x = np.linspace(-6, 6, 1001)
    exact = x * stats.norm.cdf(x)
    np.testing.assert_allclose(backward.gelu(jnp.asarray(x, jnp.float32)), exact, atol=1e-6)
    assert np.abs(np.asarray(jax.nn.gelu(x, approximate=True)) - exact).max() > 1e-4  # the test can tell


def test_sinusoidal_positions_start_as_sinusoids_and_learn():
    config = dataclasses.replace(TINY, positions="sinusoidal_init")
    params = init(config)
    table = np.asarray(params["embeddings"]["position"])
    np.testing.assert_allclose(table[:, 0], 0.2 * np.sin(np.arange(32)), atol=1e-6)
    np.testing.assert_allclose(table[:, 1], 0.2 * np.cos(np.arange(32)), atol=1e-6)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(electra.discriminator_apply(p, config, packed_batch()) ** 2)))(params)
    assert np.abs(grads["embeddings"]["position"]).max() > 0
    assert "position" not in init(dataclasses.replace(TINY, positions="rotary"))["embeddings"]


def test_bfloat16_policy_keeps_parameters_logits_and_norms_wide():
    config = dataclasses.replace(TINY, dtype="bfloat16")
    params = init(config)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    batch = packed_batch()
    apply = jax.jit(electra.discriminator_apply, static_argnums=1)
    logits = apply(params, config, batch)
    assert logits.dtype == jnp.float32
    hidden = jax.eval_shape(lambda p: electra.hidden_states(p, config, "generator", batch), params)
    assert hidden.dtype == jnp.bfloat16
    exact = apply(params, TINY, batch)
    np.testing.assert_allclose(logits[batch.segments > 0], exact[batch.segments > 0], atol=0.05)

"""One optimizer step against independent numpy in float64: the published AdamW, the mended one, and Muon."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from electra_jax.cli import UserError
from electra_jax.parallel import executors
from electra_jax.train import optimizer
from electra_jax.train.config import OptimizerConfig, ScheduleConfig


def tree(seed, scale=1.0):
    r = np.random.default_rng(seed)
    layer = lambda *shape: r.normal(0, scale, shape)  # noqa: E731
    return {
        "embeddings": {"word": layer(11, 4), "norm": {"scale": layer(4), "bias": layer(4)}},
        "discriminator": {
            "layers": {
                "attention": {"query": {"kernel": layer(2, 4, 6), "bias": layer(2, 6)}},
                "attention_norm": {"scale": layer(2, 4), "bias": layer(2, 4)},
            },
            "head": {"dense": {"kernel": layer(4, 4), "bias": layer(4)}, "bias": layer(11)},
        },
    }


def flat(params):
    return {"/".join(k.key for k in path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


DECAYED = {"embeddings/word", "discriminator/layers/attention/query/kernel", "discriminator/head/dense/kernel"}


def published_adamw(params, grads_by_step, *, peak, warmup, total, product, bias_correction, clip=1.0, wd=0.01, eps=1e-6):
    """google-research/electra model/optimization.py and the mended rules, by name and in numpy."""
    params = {k: v.copy() for k, v in params.items()}
    m = {k: np.zeros_like(v) for k, v in params.items()}
    v = {k: np.zeros_like(x) for k, x in params.items()}
    for step, grads in enumerate(grads_by_step):
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        if product:
            lr = peak * (1 - step / total) * min(1.0, step / warmup)
        else:
            lr = peak * min((step + 1) / warmup, (total - step) / (total - warmup))
        for k, g in grads.items():
            g = g * min(1.0, clip / norm)
            m[k] = 0.9 * m[k] + 0.1 * g
            v[k] = 0.999 * v[k] + 0.001 * g * g
            m_hat, v_hat = m[k], v[k]
            if bias_correction:
                m_hat, v_hat = m_hat / (1 - 0.9 ** (step + 1)), v_hat / (1 - 0.999 ** (step + 1))
            update = m_hat / (np.sqrt(v_hat) + eps)
            if k in DECAYED:
                update = update + wd * params[k]
            params[k] = params[k] - lr * update
    return params


@pytest.mark.parametrize("faithful", [True, False])
def test_adamw_equals_the_published_optimizer(faithful):
    """google-research/electra model/optimization.py: no bias correction, warm-up times decay. Five steps, two of them warm-up."""
    with jax.enable_x64(True):
        start, grads = tree(0), [tree(i, scale) for i, scale in zip(range(1, 6), (1e-3, 1.0, 3.0, 0.1, 1e-4), strict=True)]
        config = OptimizerConfig(learning_rate=0.1, bias_correction=not faithful)
        rule = optimizer.make_optimizer(config, ScheduleConfig(3, product=faithful), 10)
        params = jax.tree.map(jnp.asarray, start)
        state = rule.init(params)
        for step, g in enumerate(grads):
            updates, state = rule.update(g, state, params, step=step)
            params = optax.apply_updates(params, updates)
        kwargs = dict(peak=0.1, warmup=3, total=10)
        expected = published_adamw(flat(start), [flat(g) for g in grads], **kwargs, product=faithful, bias_correction=not faithful)
        wrong = published_adamw(flat(start), [flat(g) for g in grads], **kwargs, product=faithful, bias_correction=faithful)
        for name, value in flat(params).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-7)  # rates are float32
            assert np.abs(value - wrong[name]).max() > 1e-4  # the comparison can tell


def test_schedules():
    product = optimizer.schedule(ScheduleConfig(100, product=True), 1000)
    assert float(product(0)) == 0.0  # the published first step does nothing
    assert float(product(50)) == pytest.approx(0.5 * 0.95)
    assert float(product(100)) == pytest.approx(0.9)  # the peak is never reached
    fixed = optimizer.schedule(ScheduleConfig(100), 1000)
    assert [float(fixed(s)) for s in (0, 99, 100, 999)] == pytest.approx([0.01, 1.0, 1.0, 1 / 900])
    assert float(fixed(1000)) == float(product(1000)) == 0.0
    assert float(optimizer.schedule(ScheduleConfig(0), 10)(0)) == 1.0


def numpy_muon(m, out_in_axes=True):
    """Newton-Schulz of optax's stated form on [in, out] matrices, five steps, x sqrt(max(1, out / in))."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = m.T if m.shape[0] > m.shape[1] else m
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    x = x.T if m.shape[0] > m.shape[1] else x
    return x * np.sqrt(max(1.0, m.shape[1] / m.shape[0]))


def test_muon_on_the_layers_matrices_and_adamw_elsewhere():
    with jax.enable_x64(True):
        start, grads = tree(0), [tree(i) for i in range(1, 4)]
        config = OptimizerConfig(name="muon", learning_rate=0.1, muon_learning_rate=0.02, muon_weight_decay=0.3, clip_norm=0.0)
        rule = optimizer.make_optimizer(config, ScheduleConfig(2), 10)
        params = jax.tree.map(jnp.asarray, start)
        state = rule.init(params)
        for step, g in enumerate(grads):
            updates, state = rule.update(g, state, params, step=step)
            params = optax.apply_updates(params, updates)
        # Everything but the layers' matrices: AdamW.
        expected = published_adamw(
            flat(start), [flat(g) for g in grads], peak=0.1, warmup=2, total=10, product=False, bias_correction=True, clip=np.inf
        )
        got, matrix = flat(params), "discriminator/layers/attention/query/kernel"
        for name in set(got) - {matrix}:
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-6, atol=1e-7)  # rates are float32
        # Each layer's matrix alone: bias-corrected Nesterov momentum, orthogonalised; and decayed.
        w, m = flat(start)[matrix].copy(), np.zeros((2, 4, 6))
        for step, g in enumerate(flat(g)[matrix] for g in grads):
            m = 0.95 * m + 0.05 * g
            nesterov = 0.95 * m / (1 - 0.95 ** (step + 2)) + 0.05 * g / (1 - 0.95 ** (step + 1))
            lr = 0.02 * min((step + 1) / 2, (10 - step) / 8)
            w = w - lr * (np.stack([numpy_muon(layer) for layer in nesterov]) + 0.3 * w)
        np.testing.assert_allclose(got[matrix], w, rtol=1e-5, atol=1e-7)


def test_one_clip_over_both_networks():
    rule = optimizer.make_optimizer(OptimizerConfig(clip_norm=1.0), ScheduleConfig(0), 10)
    big, params = tree(1, 100.0), jax.tree.map(jnp.asarray, tree(0))
    norm = np.sqrt(sum((g**2).sum() for g in flat(big).values()))
    a, _ = rule.update(big, rule.init(params), params, step=0)
    b, _ = rule.update(jax.tree.map(lambda g: g / norm, big), rule.init(params), params, step=0)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), a, b)


def test_rates_by_path():
    plain = optimizer.make_optimizer(OptimizerConfig(), ScheduleConfig(0), 10)
    halved = optimizer.make_optimizer(
        OptimizerConfig(rates=(("discriminator/layers/", 0.5), ("discriminator/", 0.0))), ScheduleConfig(0), 10
    )
    params, grads = jax.tree.map(jnp.asarray, tree(0)), tree(1)
    a, b = (
        flat(plain.update(grads, plain.init(params), params, step=0)[0]),
        flat(halved.update(grads, halved.init(params), params, step=0)[0]),
    )
    for name in a:
        factor = 0.5 if "discriminator/layers/" in name else 0.0 if "discriminator" in name else 1.0
        np.testing.assert_allclose(b[name], factor * a[name], rtol=1e-6)


def test_rates_of_each_layer():
    """Layer-wise decay: a factor for each layer along the leading axis, of matrices and of biases."""
    plain = optimizer.make_optimizer(OptimizerConfig(), ScheduleConfig(0), 10)
    rates = (("discriminator/layers/", (0.25, 0.5)), ("embeddings/", 0.125))
    decayed = optimizer.make_optimizer(OptimizerConfig(rates=rates), ScheduleConfig(0), 10)
    params, grads = jax.tree.map(jnp.asarray, tree(0)), tree(1)
    a, b = (
        flat(plain.update(grads, plain.init(params), params, step=0)[0]),
        flat(decayed.update(grads, decayed.init(params), params, step=0)[0]),
    )
    for name in a:
        factors = np.array([0.25, 0.5]) if "layers/" in name else np.array([0.125 if "embeddings" in name else 1.0])
        np.testing.assert_allclose(b[name], factors.reshape(-1, *[1] * (a[name].ndim - 1)) * a[name], rtol=1e-6)


@pytest.mark.parametrize(
    "rates, message",
    [
        ((("layers/", (0.5, 0.5, 0.5)),), "optimizer.rates: .* 3 factors and matches discriminator/layers/.*, which has 2 layers"),
        ((("discriminator/", (0.5, 0.5)),), "optimizer.rates: .* matches discriminator/head/.*, which has no layers"),
    ],
)
def test_rates_of_other_layers_are_refused_before_a_step(rates, message):
    rule = optimizer.make_optimizer(OptimizerConfig(rates=rates), ScheduleConfig(0), 10)
    with pytest.raises(UserError, match=message):
        rule.init(jax.tree.map(jnp.asarray, tree(0)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: OptimizerConfig(name="adam"), "optimizer.name"),
        (lambda: OptimizerConfig(rates=(("(", 1.0),)), "regular expression"),
        (lambda: ScheduleConfig(-1), "schedule.warmup_steps is -1: it must be at least 0"),
        (lambda: OptimizerConfig(rates=(("layers/", (0.5, "x")),)), "optimizer.rates"),
        (lambda: OptimizerConfig(rates=(("layers/", None),)), "optimizer.rates"),
    ],
)
def test_bad_fields_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_the_norm_is_that_of_all_leaves_and_the_clip_keeps_what_is_shorter():
    r = np.random.default_rng(0)
    tree = {"a": r.normal(size=(13, 41, 77)).astype(np.float32), "b": {"c": 3.0 + r.random(7).astype(np.float32), "d": np.float32(2.0)}}
    length = np.sqrt(sum(float(np.sum(np.square(x, dtype=np.float64))) for x in jax.tree.leaves(tree)))
    assert float(jax.jit(optimizer.norm)(tree)) == pytest.approx(length, rel=1e-5)
    for most, factor in ((2 * length, 1.0), (length / 4, 0.25)):
        rule = optimizer.clip_by_norm(most)
        clipped, _ = rule.update(tree, rule.init(tree))
        for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(clipped), strict=True):
            np.testing.assert_allclose(y, x * factor, rtol=1e-5)


def test_squares_are_not_written_into_memory_on_a_cpu():
    """With the options of a step: with XLA's own, a plain sum would do."""
    compiled = jax.jit(optimizer.norm).lower({"a": jnp.ones((64, 512))}).compile(compiler_options=executors.COMPILER_OPTIONS["cpu"])
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * 512 * 4 / 4

"""Small models with arbitrary numbers in every parameter."""

import jax
import numpy as np

from electra_jax.interop.model import Model, Slots, shapes
from electra_jax.interop.names import flat, nested
from electra_jax.models.electra import NETWORKS
from tests import tiny

CONFIG = tiny.model(vocab_size=60, max_length=24, num_layers=2)


def model(config=CONFIG, tokenizer=None, task=None, num_labels=0, slots=False, seed=0, networks=NETWORKS, **about) -> Model:
    r = np.random.default_rng(seed)
    draw = lambda: {path: r.normal(size=shape).astype(np.float32) for path, shape in sizes.items()}  # noqa: E731
    sizes = shapes(config, task, num_labels, networks)
    params = nested(draw())
    return Model(config, params, tokenizer, Slots(draw(), draw(), 17) if slots else None, about=about)


def assert_equal(a, b) -> None:
    a, b = flat(jax.tree.map(np.asarray, a)), flat(jax.tree.map(np.asarray, b))
    assert a.keys() == b.keys()
    for path, x in a.items():
        np.testing.assert_array_equal(x, b[path], err_msg=path)

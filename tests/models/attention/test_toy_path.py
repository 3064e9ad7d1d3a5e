"""A path is one file and one line of PATHS: a toy is chosen, refused and trained through the config."""

import jax
import numpy as np
import optax
import pytest

from electra_jax.cli import UserError
from electra_jax.models import attention, electra
from electra_jax.models.attention import choice
from electra_jax.train import step
from tests import tiny


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(attention.PATHS, "toy", "tests.toys.attention_path")


def test_it_is_trained_through_the_config():
    config = tiny.model(attention="toy", attention_dropout=0.0)
    goal = tiny.objective(config)
    rule = optax.adam(0.01)
    state = jax.jit(lambda root: step.init_state(root, goal, rule))(tiny.ROOT)
    one, losses = jax.jit(step.make_train_step(goal, rule)), []
    for _ in range(6):
        state, metrics = one(state, tiny.batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] and np.isfinite(losses).all()
    trained, apply = jax.tree.map(lambda x: x, state.params), jax.jit(electra.discriminator_apply, static_argnums=1)
    layers = state.params["discriminator"]["layers"]
    layers["attention"]["query"]["kernel"] *= 100.0  # equal weights do not ask
    for path, deaf in (("toy", True), ("xla", False)):
        of_path = tiny.model(attention=path, attention_dropout=0.0)
        before, after = (apply(params, of_path, tiny.packed()) for params in (trained, state.params))
        assert np.array_equal(before, after) == deaf


def test_it_is_chosen_by_name_and_refused_in_its_own_words():
    network = tiny.model(attention_dropout=0.0).discriminator
    assert choice.choose("toy", "cpu", 64, [network]) == "toy"
    assert choice.choose("auto", "cpu", 512, [network]) == "xla"
    with pytest.raises(UserError, match="model.attention=toy: rows of 65 tokens are too long for a toy .model.attention=auto takes"):
        choice.choose("toy", "cpu", 65, [network])
    with pytest.raises(UserError, match="did you mean 'toy'"):
        tiny.model(attention="tov")

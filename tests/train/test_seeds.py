"""Several seeds in one program are the same runs as each alone."""

import functools

import jax
import numpy as np
import pytest

from electra_jax import build, rng
from electra_jax.cli import UserError
from electra_jax.finetune import objective
from electra_jax.interop import start
from electra_jax.parallel import mesh
from electra_jax.recipe import RunRecipe
from electra_jax.train import seeds
from electra_jax.train.config import OptimizerConfig, ScheduleConfig, TrainConfig
from tests import tiny

STEPS, ROWS = 4, 8


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def recipe(seed: int) -> RunRecipe:
    return RunRecipe(
        seed=seed,
        model=tiny.double(),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        schedule=ScheduleConfig(warmup_steps=1),
        train=TrainConfig(steps=STEPS, batch_rows=ROWS),
    )


def batches(seed: int) -> list:
    found = []
    for step in range(STEPS):
        batch = tiny.batch(ROWS, seed=100 * seed + step)
        found.append(objective.Labelled(*jax.tree.leaves(batch), batch.tokens[:, 1] % 2))
    return found


@functools.cache
def made(first: int, count: int, num_devices: int):
    """(parts, program) of so many seeds, dropout on."""
    config = recipe(first)
    devices = build.Devices.of(config, jax.devices()[:num_devices], count)
    goal = objective.make(config.model, "class", "classification", 2, None, lambda outputs: {})
    parts = build.build(config, devices, goal, count)
    return parts, parts.programs().of(jax.tree.map(lambda x: np.concatenate([x] * count), batches(first)[0]))


def trained(parts, program, root, seeds_: list[int]):
    """(state, metrics of the last step) after STEPS steps."""
    state, each = parts.init(root), [batches(seed) for seed in seeds_]
    for step in range(STEPS):
        joined = jax.tree.map(lambda *x: np.concatenate(x), *(of_seed[step] for of_seed in each))
        state, metrics = program.run(state, program.place(joined))
    return state, metrics


@functools.cache
def alone(seed: int):
    return trained(*made(3, 1, 1), rng.root_key(seed), [seed])


@pytest.mark.parametrize("num_devices", [1, 2])
def test_together_as_alone(num_devices):
    parts, program = made(3, 4, num_devices)
    state, metrics = trained(parts, program, parts.root, [3, 4, 5, 6])
    assert int(state.step) == STEPS and parts.seeds == (3, 4, 5, 6) and parts.batch_rows == 4 * ROWS
    losses = []
    for seed, params, root in zip(parts.seeds, parts.members(state), state.root, strict=True):
        its_state, its_metrics = alone(seed)
        losses.append(float(its_metrics["loss"]))
        np.testing.assert_array_equal(root, rng.key_words(rng.root_key(seed)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), params, its_state.params)
    np.testing.assert_allclose(float(metrics["loss"]), np.mean(losses), rtol=1e-6)
    assert len(set(losses)) == 4


def test_seeds_that_cannot_be_dealt_out_are_refused():
    with pytest.raises(UserError, match="seeds=5 cannot be dealt out to 4 devices: choose 4 or 8 of them"):
        seeds.check(5, mesh.make_mesh(1, 4, 1, jax.devices()[:4]))
    with pytest.raises(UserError, match="a seed lives on one device; leave parallel.fsdp out"):
        seeds.check(4, mesh.make_mesh(1, 2, 2, jax.devices()[:4]))


def test_figures_of_several_seeds():
    one = {"eval/accuracy": 0.5}
    assert seeds.summary({7: one}) == one
    found = seeds.summary({0: one, 1: {"eval/accuracy": 0.7}, 2: {"eval/accuracy": 0.9}})
    assert found == {"eval/accuracy": 0.7, "eval/accuracy.seed0": 0.5, "eval/accuracy.seed1": 0.7, "eval/accuracy.seed2": 0.9}


def test_one_value_begins_all_seeds():
    parts, _ = made(3, 4, 1)
    word = np.arange(tiny.VOCAB_SIZE * 8, dtype=np.float64).reshape(tiny.VOCAB_SIZE, 8)
    placed = start.placed(parts.init(parts.root), {"params/embeddings/word": word})
    for params in parts.members(placed):
        np.testing.assert_array_equal(params["embeddings"]["word"], word)

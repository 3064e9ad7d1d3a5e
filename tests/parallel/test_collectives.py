"""What travels between devices in a step, read from the compiled program."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax import rng
from electra_jax.build import abstract_batch, make_init
from electra_jax.models import electra
from electra_jax.offline import hlo
from electra_jax.parallel import executors, mesh
from electra_jax.train import optimizer, step
from electra_jax.train.config import OptimizerConfig, ScheduleConfig
from tests import tiny

LAYERS, MICRO_BATCHES = 3, 4
MODEL = tiny.model(num_layers=LAYERS, dtype="bfloat16", scan_layers=True)


def travels(executor: str, data: int, fsdp: int):
    """The collectives of a step with accumulation over scanned layers, and the shapes of its parameters."""
    goal = tiny.objective(MODEL)
    rule = optimizer.make_optimizer(OptimizerConfig(), ScheduleConfig(10), 100)
    devices = mesh.make_mesh(1, data, fsdp, jax.devices()[:8])
    body = step.make_train_step(goal, rule, MICRO_BATCHES, reduce=executors.reduction(executor))
    _, state = make_init(goal, rule, devices, rng.root_key(0))
    program = executors.compile_step(body, state, abstract_batch(32, tiny.LENGTH), devices, executor)
    return hlo.collectives(hlo.Module(program.compiled.as_text())), state.params


def test_data_parallel_gradients_are_summed_once_in_float32():
    found, params = travels("shard_map", 8, 1)
    assert {c.kind for c in found} == {"all-reduce"} and all(c.depth == 0 and c.times == 1 for c in found)
    assert {dtype for c in found for dtype in c.dtypes} == {"f32"}
    gradients = 4 * sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    assert gradients <= sum(c.bytes_once for c in found) < gradients + 1000  # and the sums of losses and metrics


def test_the_reader_sees_what_is_in_loops():
    """Under jit alone XLA sums gradients in every micro-batch and every layer: what shard_map is for."""
    found, _ = travels("jit", 8, 1)
    assert {c.times for c in found if c.depth == 2} == {MICRO_BATCHES * LAYERS}
    assert {c.times for c in found if c.depth == 1} == {MICRO_BATCHES}


@pytest.mark.parametrize("data, fsdp", [(2, 4), (1, 8)])
def test_fsdp_gathers_and_scatters_and_never_sums_a_whole_matrix(data, fsdp):
    found, params = travels("jit", data, fsdp)
    kinds = {c.kind for c in found}
    assert {"all-gather", "reduce-scatter"} <= kinds <= {"all-gather", "reduce-scatter", "all-reduce"}
    gathers = [c for c in found if c.kind == "all-gather"]
    assert gathers and all(c.bytes_made == fsdp * c.bytes_once for c in gathers)
    cut = [math.prod(x.shape) for x in jax.tree.leaves(params) if "fsdp" in x.sharding.spec]
    layers = [size // LAYERS if size % LAYERS == 0 else size for size in cut]
    whole = max(c.elements for c in found if c.kind == "all-reduce")
    assert whole <= max(layers) // fsdp  # one device's part, or a bias
    batch = 32 // MICRO_BATCHES * tiny.LENGTH * MODEL.hidden_size
    assert max(c.elements for c in found) <= max(max(layers), batch // 8)  # no activation of other rows


def test_the_gradient_of_the_words_is_not_rounded_to_bfloat16_on_its_way():
    params = jax.jit(tiny.objective(MODEL).init)(rng.root_key(0))
    batch = tiny.batch(8)
    batch = batch.replace(tokens=batch.tokens % 7)  # the other words have a gradient through the head alone
    slots_BxK = np.arange(4) + np.zeros((8, 1), np.int32)

    def loss(params):
        return electra.generator_nll(params, MODEL, batch, slots_BxK, slots_BxK)[0].mean()

    with jax.set_mesh(mesh.make_mesh(1, 1, 4, jax.devices()[:4])):
        word_VxE = jax.jit(jax.grad(loss))(params)["embeddings"]["word"][7:]
    assert np.mean(word_VxE == word_VxE.astype(jnp.bfloat16)) < 0.05  # all, where it is rounded

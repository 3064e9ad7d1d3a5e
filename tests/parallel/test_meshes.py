"""One step on many meshes: the same random bits, and the same gradients to rounding, wherever the rows lie."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from electra_jax import rng
from electra_jax.build import make_init
from electra_jax.cli import UserError
from electra_jax.models.config import PRESETS
from electra_jax.objectives import electra
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig
from electra_jax.parallel import executors, mesh, sharding
from electra_jax.train import optimizer, step
from electra_jax.train.config import OptimizerConfig, ScheduleConfig
from electra_jax.types import Vocabulary
from tests import tiny

ROWS, LENGTH = 32, tiny.LENGTH
OBJECTIVE = tiny.objective(tiny.double())
ROOT = tiny.ROOT
SGD = optax.sgd(0.1)  # a scale error cannot hide behind Adam
MESHES = [(n // fsdp, fsdp) for n in (1, 2, 4, 8) for fsdp in (1, 2, 4, 8) if fsdp <= n]


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def make(data: int, fsdp: int):
    return mesh.make_mesh(1, data, fsdp, jax.devices()[: data * fsdp])


def one_step(devices, executor: str, accumulation_steps: int):
    """(state, metrics) after one step of SGD, on the host."""
    executor = executors.choose(executor, devices)
    body = step.make_train_step(OBJECTIVE, SGD, accumulation_steps, reduce=executors.reduction(executor))
    _, shapes = make_init(OBJECTIVE, SGD, devices, ROOT)
    state = jax.device_put(first_state(), jax.tree.map(lambda x: x.sharding, shapes))
    batch = tiny.batch(ROWS)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    quick = {"xla_backend_optimization_level": 0}  # to compile
    program = executors.compile_step(body, shapes, abstract, devices, executor, options=quick)
    return jax.device_get(program.run(state, program.place(batch)))


@functools.cache
def first_state():
    return jax.device_get(jax.jit(lambda key: step.init_state(key, OBJECTIVE, SGD))(ROOT))


def test_the_first_state_is_the_same_bits_on_every_mesh():
    for sizes in ((8, 1), (2, 4)):
        init, _ = make_init(OBJECTIVE, SGD, make(*sizes), ROOT)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(init(ROOT)), first_state())


@functools.cache
def reference():
    return one_step(make(1, 1), "jit", 1)


def every_mesh():
    """One accumulation a mesh in turn; the rest of the square is among the slow proofs."""
    for number, (data, fsdp) in enumerate(MESHES):
        for accumulation_steps in (1, 2, 4):
            first = accumulation_steps == (1, 2, 4)[number % 3]
            yield pytest.param(data, fsdp, accumulation_steps, marks=() if first else pytest.mark.slow)


@pytest.mark.parametrize("data, fsdp, accumulation_steps", list(every_mesh()))
def test_one_sgd_step_is_the_same_on_every_mesh(data, fsdp, accumulation_steps):
    same(one_step(make(data, fsdp), "auto", accumulation_steps))


@pytest.mark.parametrize("executor, accumulation_steps", [("jit", 1), ("jit", 4), ("shard_map", 4), ("pmap", 1), ("pmap", 4)])
def test_one_sgd_step_is_the_same_with_every_executor(executor, accumulation_steps):
    same(one_step(make(8, 1), executor, accumulation_steps))


def same(found):
    state, metrics = reference()
    for name in metrics:
        np.testing.assert_allclose(found[1][name], metrics[name], rtol=1e-6, err_msg=name)  # float32 scalars
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.max(np.abs(a - b)), found[0].params, state.params))
    assert max(moved) < 1e-9
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: np.max(np.abs(a - b)), first_state().params, state.params))) > 1e-3


def bits(batch):
    plan, _ = OBJECTIVE.plan(batch, rng.StepRng(ROOT, jnp.int32(5)), True)
    seeds = rng.site_seeds(plan.generator.seeds, jnp.uint32(2), 3)
    return plan, rng.keep_mask(seeds, (LENGTH, 8), 0.1)


@functools.cache
def wanted_bits():
    return jax.device_get(jax.jit(bits)(tiny.batch(ROWS)))


@pytest.mark.parametrize("data, fsdp", MESHES)
def test_masks_noise_and_dropout_are_the_same_bits_on_every_mesh(data, fsdp):
    devices = make(data, fsdp)
    rows = mesh.by_rows(devices)
    for run in (jax.jit(bits, in_shardings=rows, out_shardings=rows), shard_mapped(bits, devices)):
        found = jax.device_get(mesh.on_mesh(run, devices)(mesh.to_devices(tiny.batch(ROWS), devices)))
        jax.tree.map(np.testing.assert_array_equal, found, wanted_bits())


def shard_mapped(function, devices):
    rows = mesh.by_rows(devices).spec
    return jax.jit(jax.shard_map(function, mesh=devices, in_specs=rows, out_specs=rows, check_vma=False))


def test_fsdp_cuts_parameters_and_optimizer_state_evenly():
    rule = optimizer.make_optimizer(OptimizerConfig(), ScheduleConfig(10), 100)
    config = dataclasses.replace(PRESETS["base"], num_layers=2)
    goal = electra.make(config, MaskingConfig(), ObjectiveConfig(), Vocabulary(2, 3, 4, np.ones(30522, bool)))

    def on_one_device(fsdp: int) -> int:
        _, shapes = make_init(goal, rule, make(8 // fsdp, fsdp), ROOT)
        return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(shapes))

    whole = on_one_device(1)
    for fsdp in (2, 4, 8):
        assert on_one_device(fsdp) * fsdp < 1.02 * whole


def test_the_table_by_path():
    for path, shape, cut in (
        ("params/discriminator/layers/ffn/intermediate/kernel", (12, 768, 3072), 1),
        ("opt_state/0/mu/discriminator/layers/ffn/output/kernel", (12, 3072, 768), 1),
        ("params/generator/project/kernel", (768, 256), 0),
        ("params/embeddings/word", (30522, 768), 1),
        ("params/generator/head/dense/kernel", (256, 768), 0),
    ):
        assert sharding.spec(path, shape, 4) == jax.sharding.PartitionSpec(*(None,) * cut, "fsdp"), path
        assert sharding.spec(path, shape, 5) == sharding.spec(path, shape, 1) == jax.sharding.PartitionSpec()
    for path, shape in (("params/discriminator/layers/ffn_norm/scale", (12, 768)), ("step", ())):
        assert sharding.spec(path, shape, 4) == jax.sharding.PartitionSpec()


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((1, 3, 1), "data=3.*does not fit 8 devices"),
        ((1, -1, 3), "does not fit 8 devices"),
        ((1, 0, 1), "at least 1"),
        ((-1, -1, 1), "one of them may be -1"),
        ((1, -2, 1), "at least 1"),
    ],
)
def test_a_mesh_that_does_not_fit_says_so(sizes, message):
    with pytest.raises(UserError, match=message):
        mesh.make_mesh(*sizes, devices=jax.devices()[:8])


def test_minus_one_takes_what_is_left_and_rows_are_dealt_by_index():
    devices = mesh.make_mesh(2, -1, 2, jax.devices()[:8])
    assert dict(devices.shape) == {"slices": 2, "data": 2, "fsdp": 2}
    assert mesh.host_rows(devices, 16).tolist() == list(range(16))
    placed = mesh.to_devices(np.arange(16), devices, 16)
    assert [shard.data.tolist() for shard in placed.addressable_shards] == [[2 * n, 2 * n + 1] for n in range(8)]


def test_executors_that_cannot_run_say_so():
    assert [executors.choose("auto", make(*sizes)) for sizes in ((1, 1), (4, 1), (2, 2))] == ["jit", "shard_map", "jit"]
    for executor in ("pmap", "shard_map"):
        with pytest.raises(UserError, match=f"{executor} runs data parallel alone"):
            executors.choose(executor, make(2, 2))
    with pytest.raises(UserError, match="multiple of 32, such as 32"):
        executors.check_batch(8, 20, 4)
    with pytest.raises(UserError, match="fsdp=8 divides the width of no parameter"):
        sharding.shardings({"layers": {"kernel": jax.ShapeDtypeStruct((2, 12, 12), jnp.float32)}}, make(1, 8))

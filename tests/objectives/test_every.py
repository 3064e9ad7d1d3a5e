"""What holds for every objective: gradients that do not depend on the mesh or on micro-batches, a resume to the bit, presets that trace.

`make test` does this with few; `make objectives` with all.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from electra_jax.build import Devices, build, make_init, pretraining_objective
from electra_jax.data.config import DataConfig
from electra_jax.models.config import PRESETS
from electra_jax.objectives.config import MaskingConfig, ObjectiveConfig
from electra_jax.parallel import executors, mesh
from electra_jax.pretrain import pretrain
from electra_jax.recipe import Recipe
from electra_jax.store.config import CheckpointConfig
from electra_jax.train import step
from electra_jax.train.config import EvalConfig, ScheduleConfig, TrainConfig
from electra_jax.watch.config import LogConfig
from tests import tiny
from tests.launch import runs
from tests.objectives import equations
from tests.train.test_step import SGD

ROWS = 16
# The objective, its fields, and what the model shares.
CASES = {
    **{name: (name, {}, "shared") for name in equations.EQUATIONS if "," not in name},
    "electric, one generator": ("electric", dict(towers=False), "shared"),
    "mntp_clm": ("mntp_clm", dict(causal_fraction=0.4), "shared"),
    "electra, unigram": ("electra", dict(generator="unigram"), "shared"),
    "electra, frozen": ("electra", dict(train_generator=False, temperature=2.0, temperature_decay_steps=3), "none"),
    "electra, gdes": ("electra", {}, "gdes"),
    "electra, all": ("electra", {}, "all"),
    "mixture": ("mixture", dict(mixture="all_tokens_mlm=1,electric=1>0@4"), "shared"),
}


LONG = pytest.mark.objectives  # is run by `make objectives` alone


def cases(always: str = ""):
    """always: is run by `make test` too."""
    return [pytest.param(case, marks=() if case == always else LONG) for case in CASES]


def parts_of(case: str, **fields):
    """(objective fields, masking, model fields)"""
    name, of_objective, sharing = CASES[case]
    masking = MaskingConfig(rate=0.3, mask_fraction=1.0 if "one generator" in case else 0.85)
    size = dict(generator_hidden_fraction=1.0) if sharing == "all" else {}
    return dict(name=name, **of_objective), masking, dict(sharing=sharing, **size, **fields)


@functools.cache
def goal_of(case: str):
    of_objective, masking, of_model = parts_of(case)
    return equations.make(model=tiny.double(**of_model), masking_config=masking, **of_objective)


@functools.cache
def first_state(case: str):
    return jax.device_get(jax.jit(lambda key: step.init_state(key, goal_of(case), SGD))(tiny.ROOT))


@functools.cache
def one_step(case: str, data: int, fsdp: int, accumulation_steps: int):
    """(state, metrics) after one step of SGD, on the host."""
    goal, devices = goal_of(case), mesh.make_mesh(1, data, fsdp, jax.devices()[: data * fsdp])
    executor = executors.choose("auto", devices)
    body = step.make_train_step(goal, SGD, accumulation_steps, reduce=executors.reduction(executor))
    _, shapes = make_init(goal, SGD, devices, tiny.ROOT)
    state = jax.device_put(first_state(case), jax.tree.map(lambda x: x.sharding, shapes))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tiny.batch(ROWS))
    program = executors.compile_step(body, shapes, abstract, devices, executor, options={"xla_backend_optimization_level": 0})
    return jax.device_get(program.run(state, program.place(tiny.batch(ROWS))))


@pytest.mark.parametrize(
    "data, fsdp, accumulation_steps", [pytest.param(8, 1, 1, marks=LONG), pytest.param(1, 1, 4, marks=LONG), (2, 4, 2)]
)
@pytest.mark.parametrize("case", cases("mlm"))
def test_one_step_is_the_same_on_every_mesh_and_in_micro_batches(case, data, fsdp, accumulation_steps):
    with jax.enable_x64(True):
        state, metrics = one_step(case, 1, 1, 1)
        found = one_step(case, data, fsdp, accumulation_steps)
        for name in metrics:
            np.testing.assert_allclose(found[1][name], metrics[name], rtol=1e-6, err_msg=name)  # float32 scalars
        moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.max(np.abs(a - b)), found[0].params, state.params))
        assert max(moved) < 1e-9
        assert max(jax.tree.leaves(jax.tree.map(lambda a, b: np.max(np.abs(a - b)), first_state(case).params, state.params))) > 1e-4


@pytest.mark.parametrize("case", cases())
def test_a_run_goes_on_bit_for_bit(case, rows, tmp_path, capsys):
    of_objective, masking, of_model = parts_of(case, vocab_size=600)
    recipe = Recipe(
        model=tiny.model(**of_model),
        masking=masking,
        objective=ObjectiveConfig(**of_objective),
        schedule=ScheduleConfig(warmup_steps=1, decay_steps=6),
        data=DataConfig(path=str(rows), length=32),
        train=TrainConfig(steps=6, batch_rows=8),
        log=LogConfig(every_steps=1, tensorboard=False),
        eval=EvalConfig(every_steps=3, max_rows=16, batch_rows=8),
        checkpoint=CheckpointConfig(every_steps=6),
    )
    result = pretrain(recipe, tmp_path / "whole")
    pretrain(dataclasses.replace(recipe, train=TrainConfig(steps=4, batch_rows=8)), tmp_path / "parts")
    pretrain(recipe, tmp_path / "parts")
    assert runs.state_bytes(tmp_path / "whole") == runs.state_bytes(tmp_path / "parts")
    assert all(np.isfinite(value) for value in result.metrics.values())
    shown = {name for name in result.metrics if name.startswith("eval/")}
    said = capsys.readouterr().err
    assert "step 3: " in said and (tmp_path / "whole" / "report.html").exists()
    # What the view names is measured.
    goal = equations.make(model=tiny.model(**of_model), masking_config=masking, vocabulary=tiny.vocabulary(600), **of_objective)
    assert set(goal.view.shown) <= shown


@pytest.mark.parametrize("preset", [preset if preset == "tiny" else pytest.param(preset, marks=LONG) for preset in PRESETS])
@pytest.mark.parametrize("case", cases("mixture"))
def test_every_preset_traces(case, preset):
    """Without compiling: the shapes of a step."""
    of_objective, masking, of_model = parts_of(case)
    model = dataclasses.replace(PRESETS[preset], dtype="float32", **of_model)
    recipe = Recipe(
        model=model, masking=masking, objective=ObjectiveConfig(**of_objective), data=DataConfig(length=64), train=TrainConfig(batch_rows=8)
    )
    devices = Devices.of(recipe, jax.devices()[:1])
    recipe = recipe.resolve(devices.platform)
    parts = build(recipe, devices, pretraining_objective(recipe, tiny.vocabulary(model.vocab_size), devices))
    state, metrics = jax.eval_shape(parts.body, parts.abstract_state, tiny.batch(8, 64))
    assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(lambda x: x.shape, parts.abstract_state)
    assert metrics["loss"].shape == ()

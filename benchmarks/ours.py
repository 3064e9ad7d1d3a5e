"""Our sides: the step as pretrain.py builds it, on one device, and what this machine reaches in a matrix product and a copy."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import rows
from electra_jax import pretrain, rng
from electra_jax.models.config import ElectraConfig
from electra_jax.objectives import masking
from electra_jax.parallel import executors, mesh
from electra_jax.train import optimizer
from electra_jax.types import Objective, TrainState
from electra_jax.watch import clock

Run = Callable[[], dict[str, float]]


class Parts(NamedTuple):
    """What a step is made of, before it is compiled."""

    config: dict[str, Any]
    mesh: jax.sharding.Mesh
    platform: mesh.Platform
    model: ElectraConfig
    objective: Objective
    rule: optax.GradientTransformation
    root: jax.Array
    init: Callable[[jax.Array], TrainState]
    abstract_state: Any
    executor: str

    @property
    def abstract_batch(self):
        return pretrain.abstract_batch(self.config["train"]["batch_rows"], self.config["data"]["length"])

    def compile(self, objective: Objective | None = None) -> executors.Program:
        """pretrain's step; `objective` in the place of the config's."""
        schedule = pretrain.schedule_config(self.config)
        body = pretrain.make_step(self.config, objective or self.objective, self.rule, schedule, self.root, self.executor)
        return executors.compile_step(body, self.abstract_state, self.abstract_batch, self.mesh, self.executor)


def build(config: Mapping[str, Any], devices: Sequence | None = None) -> Parts:
    """`config` is configs/pretrain.py's, which needs no data here; `devices`: the first one that there is."""
    executors.run_in_the_call()
    config = json.loads(json.dumps(config))
    devices = mesh.make_mesh(devices=devices or jax.devices()[:1])
    platform = mesh.Platform.of(devices)
    model = pretrain.model_config(config, platform)
    vocabulary = masking.Vocabulary(rows.CLS, rows.SEP, rows.MASK, np.ones(model.vocab_size, bool))
    objective = pretrain.make_objective(config, model, vocabulary, platform)
    rule = optimizer.make_optimizer(pretrain.optimizer_config(config), pretrain.schedule_config(config), config["train"]["steps"])
    root = rng.root_key(config["seed"])
    init, abstract_state = pretrain.make_init(objective, rule, devices, root)
    executor = executors.choose(config["parallel"]["executor"], devices)
    return Parts(config, devices, platform, model, objective, rule, root, init, abstract_state, executor)


def batch(parts: Parts, kind: str):
    train, length = parts.config["train"], parts.config["data"]["length"]
    return rows.make(kind, parts.model.vocab_size, train["batch_rows"], length)


def step(config: Mapping[str, Any], kind: str = "full", steps: int = 1) -> Run:
    """A turn is so many pretraining steps on the same rows, waited for once, as the loop does not wait for its device."""
    parts = build(config)
    program = parts.compile()
    given, state = batch(parts, kind), parts.init(parts.root)
    placed, flops = program.place(given), parts.objective.flops(len(given.row))
    work = {"steps": steps, "flops": steps * flops, "tokens": steps * rows.useful_tokens(given), "rows": steps * len(given.row)}
    of_program = {"program_mib": program.peak_bytes / 2**20, "compile_secs": program.compile_secs}

    def run() -> dict[str, float]:
        nonlocal state
        for _ in range(steps):
            state, metrics = program.run(state, placed)
        jax.block_until_ready(state)
        return {"loss": float(metrics["loss"]), **work, **of_program, **device_memory()}

    return run


def matmul(size: int = 4096, dtype: str = "float32") -> Run:
    """A turn is one product of square matrices: the peak that a step is held against."""
    multiply, x_NxN = jax.jit(jnp.matmul), jnp.ones((size, size), dtype)

    def run() -> dict[str, float]:
        multiply(x_NxN, x_NxN).block_until_ready()
        return {"flops": 2.0 * size**3}

    return run


def stream(megabytes: int = 512) -> Run:
    """A turn is x + 2 y of arrays far larger than caches, into x: what the memory gives."""
    add = jax.jit(lambda x, y: x + 2.0 * y, donate_argnums=0)
    x, y = (jnp.ones(megabytes * 2**18, jnp.float32) for _ in range(2))

    def run() -> dict[str, float]:
        nonlocal x
        x = add(x, y).block_until_ready()
        return {"bytes": 3.0 * megabytes * 2**20}

    return run


def device_memory() -> dict[str, float]:
    """The peak of an accelerator's memory takes the place of the process's own."""
    stats = jax.devices()[0].memory_stats() or {}
    return {"peak_mib": stats["peak_bytes_in_use"] / 2**20} if "peak_bytes_in_use" in stats else {}


def hardware() -> Run:
    """What there is. Asked in a child: a parent that holds a GPU would take memory from both sides."""
    device = jax.devices()[0]
    peak = clock.peak_flops(device.device_kind, "bfloat16")
    memory_bytes = mesh.device_memory_bytes(mesh.make_mesh(devices=[device]))
    return lambda: {"platform": device.platform, "kind": device.device_kind, "peak_bfloat16": peak, "memory_bytes": memory_bytes}

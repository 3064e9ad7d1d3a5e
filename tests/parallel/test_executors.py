"""The seam to devices: choices by platform, memory before the first step, state in and out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_jax.cli import UserError
from electra_jax.parallel import executors, mesh


def body(state, batch):
    return state + jnp.sum(batch), {"sum": jnp.sum(batch)}


def test_compiled_step_runs_and_reports_its_memory():
    devices = mesh.make_mesh()
    shapes = jax.ShapeDtypeStruct((1000,), jnp.float32), jax.ShapeDtypeStruct((8, 4), jnp.float32)
    program = executors.compile_step(body, *shapes, devices, "jit")
    batch = mesh.to_devices(np.ones((8, 4), np.float32), devices)
    state, metrics = program.run(jax.device_put(jnp.zeros(1000), mesh.replicated(devices)), batch)
    assert float(metrics["sum"]) == 32 and float(state[0]) == 32
    assert 4_000 <= program.peak_bytes < 100_000


def test_too_little_memory_is_said_before_anything_runs(monkeypatch):
    monkeypatch.setattr(mesh, "device_memory_bytes", lambda _: 1000)
    with pytest.raises(UserError, match="accumulation_steps.*remat=full"):
        shapes = jax.ShapeDtypeStruct((1000,), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.float32)
        executors.compile_step(body, *shapes, mesh.make_mesh(), "jit")


def test_unknown_executor_is_named():
    with pytest.raises(UserError, match="parallel.executor.*'jit'"):
        executors.choose("jitt", mesh.make_mesh())


def test_pmap_counts_the_processes_of_the_mesh_and_not_its_own():
    """A compile for a pod is one process that compiles for many."""

    class Device:
        def __init__(self, process_index):
            self.process_index = process_index

    class Mesh:
        shape, size, devices = {"fsdp": 1}, 4, np.array([[Device(0), Device(0), Device(1), Device(1)]])

    with pytest.raises(UserError, match="runs in one process and there are 2"):
        executors.choose("pmap", Mesh())
    Mesh.devices = Mesh.devices[:, :2]
    assert executors.choose("pmap", Mesh()) == "pmap"


def test_platform_comes_from_the_devices():
    class Device:
        platform, device_kind = "tpu", "TPU v5 lite"

    class Mesh:
        devices = np.array([[Device()]])

    assert mesh.Platform.of(Mesh()) == mesh.Platform("tpu", "TPU v5 lite", "bfloat16", 8)
    Device.platform, Device.device_kind = "gpu", "AMD Instinct MI300X"
    Device.client = type("Client", (), {"platform_version": "rocm 60400"})
    assert mesh.Platform.of(Mesh()).name == "rocm"  # where auto does not mean cuDNN
    assert mesh.Platform.of(mesh.make_mesh()).dtype == "float32"
    assert mesh.device_memory_bytes(mesh.make_mesh()) > 2**28

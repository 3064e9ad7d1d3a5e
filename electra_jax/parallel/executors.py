"""Runs one step body on the mesh: the same signature, whatever the executor."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from electra_jax.cli import UserError
from electra_jax.config import one_of
from electra_jax.parallel import mesh as meshes

EXECUTORS = ("auto", "jit")


class Program(NamedTuple):
    """A compiled step. `peak_bytes` is what one device holds while it runs, state and batch included, as the compiler counts."""

    run: Callable
    peak_bytes: int
    compile_secs: float


def compile_step(body: Callable, abstract_state, abstract_batch, mesh: Mesh, executor: str = "auto") -> Program:
    """Compiles body(state, batch) -> (state, metrics) ahead of the first call. The state is donated.

    Raises UserError where the step needs more memory than a device has, before anything runs.
    """
    one_of("parallel.executor", executor, EXECUTORS)
    state_sharding = meshes.replicated(mesh)
    step = jax.jit(
        body,
        in_shardings=(state_sharding, meshes.by_rows(mesh)),
        out_shardings=(state_sharding, meshes.replicated(mesh)),
        donate_argnums=0,
    )
    start = time.monotonic()
    try:
        compiled = step.lower(abstract_state, abstract_batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(_too_large("more memory than the device has", error)) from error
    usage = compiled.memory_analysis()
    peak_bytes = (
        usage.argument_size_in_bytes + usage.output_size_in_bytes - usage.alias_size_in_bytes + usage.temp_size_in_bytes
    )
    limit = meshes.device_memory_bytes(mesh)
    if limit and peak_bytes > limit:
        raise UserError(_too_large(f"{peak_bytes / 2**30:.1f} GiB, and the device has {limit / 2**30:.1f}"))
    return Program(compiled, peak_bytes, time.monotonic() - start)


def _too_large(need: str, error: Exception | None = None) -> str:
    return (
        f"the step needs {need}: raise --config.train.accumulation_steps (2, 4, ...), set --config.model.remat=full, "
        "or lower --config.train.batch_rows"
    )

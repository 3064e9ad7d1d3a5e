"""Runs one step body on the mesh: the same signature and the same global arrays, whatever the executor."""

import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from electra_jax.cli import UserError
from electra_jax.options import one_of
from electra_jax.parallel import allocator
from electra_jax.parallel import mesh as meshes
from electra_jax.parallel.config import EXECUTORS

_PMAP_AXIS = "devices"
Options = Mapping[str, str | bool | int | float] | None


class Program(NamedTuple):
    """A compiled step.

    run(state, batch) -> (state, metrics); the state is donated. A step that was lowered with `spare` takes (state, batch, spare).
    place(batch of this host's rows, `mesh.host_rows`) -> what `run` takes.
    peak_bytes: what one device holds while it runs, state and batch included, as the compiler counts.
    """

    run: Callable
    place: Callable
    peak_bytes: int
    compile_secs: float
    compiled: jax.stages.Compiled


class TooLarge(UserError):
    """A step needs more memory than a device has. `need_bytes`: None where the compiler did not say."""

    def __init__(self, need_bytes: int | None, limit_bytes: int | None):
        self.need_bytes = need_bytes
        need = f"{need_bytes / 2**30:.1f} GiB" if need_bytes else "more memory than there is"
        has = f", and the device has {limit_bytes / 2**30:.1f}" if limit_bytes else ""
        super().__init__(
            f"the step needs {need}{has}: raise --config.train.accumulation_steps (2, 4, ...), set --config.model.remat=full, "
            "cut the state over more devices (--config.parallel.fsdp), or lower --config.train.batch_rows"
        )


def run_in_the_call() -> None:
    """Has jax's CPU client run a program within the call, and free its memory before the call returns. To be called before the first array.

    Else a step begins while the memory of the one before it is still to be freed, both lie in memory, and the heap is torn: the process
    of `small` grew by 1.4 GiB in every second step of a busy machine. The queue gains a CPU nothing: the host's work is on the same cores.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def choose(executor: str, mesh: Mesh) -> str:
    """What "auto" means on this mesh. UserError where the executor asked for cannot run on it.

    shard_map where the mesh is data alone: gradients are summed once a step, in float32, by an explicit psum. Under jit XLA sums
    them where it likes (in every micro-batch, and in bfloat16 where the forward pass casts a weight). jit on one device, and with
    fsdp, where XLA's placing of the gathers is what one wants. pmap on request: "the old way" in jax's own words, and as exact.
    """
    one_of("parallel.executor", executor, EXECUTORS)
    fsdp = mesh.shape["fsdp"]
    if executor == "auto":
        return "jit" if fsdp > 1 or mesh.size == 1 else "shard_map"
    if executor != "jit" and fsdp > 1:
        raise UserError(f"parallel.executor={executor} runs data parallel alone and parallel.fsdp is {fsdp}: choose jit or auto")
    processes = len({device.process_index for device in mesh.devices.flat})  # of the mesh: a compile for a pod counts the pod's
    if executor == "pmap" and processes > 1:
        raise UserError(f"parallel.executor=pmap runs in one process and there are {processes}: choose shard_map or auto")
    return executor


def reduction(executor: str) -> Callable:
    """The `reduce` of train.step.make_train_step: sums of a tree over the devices, where each has sums of its own."""
    axes = {"jit": None, "shard_map": meshes.AXES, "pmap": _PMAP_AXIS}[executor]

    def over_devices(tree):
        # The barrier keeps XLA from summing what the forward pass cast to bfloat16 in bfloat16, and casting the sum.
        return jax.lax.psum(jax.lax.optimization_barrier(tree), axes)

    return over_devices if axes else lambda tree: tree


def check_batch(num_devices: int, batch_rows: int, accumulation_steps: int) -> None:
    """UserError where the rows of a step cannot be dealt out evenly."""
    parts = num_devices * max(accumulation_steps, 1)
    if batch_rows < 1 or accumulation_steps < 1 or batch_rows % parts:
        below = batch_rows // parts * parts
        near = " or ".join(str(rows) for rows in (below, below + parts) if rows > 0)
        raise UserError(
            f"train.batch_rows={batch_rows} cannot be dealt out to {num_devices} device{'s' * (num_devices > 1)} in "
            f"train.accumulation_steps={accumulation_steps} equal parts: choose a multiple of {parts}, such as {near}"
        )


# What XLA would choose otherwise, by platform. On a CPU it hands products and reductions to YNNPACK, whose threads wait for one another:
# a step is shorter without it, most of all where another program keeps a core busy. And it copies the optimizer's means before it writes
# the new ones over them, unless it looks at which parts of an array are read and written when (docs/speed.md).
COMPILER_OPTIONS = {"cpu": {"xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_copy_insertion_use_region_analysis": True}}


class Lowered(NamedTuple):
    """A step before the compiler has seen it."""

    step: jax.stages.Lowered
    place: Callable  # as Program.place
    mesh: Mesh
    secs: float  # that lowering took


def lower_step(body: Callable, abstract_state, abstract_batch, mesh: Mesh, executor: str, spare: bool = False) -> Lowered:
    """Traces body(state, batch) -> (state, metrics) for one of `choose`'s executors. abstract_state: shapes with their shardings.
    abstract_batch: of the global batch. The new state is written over the old one. spare: under jit alone, body(state, batch, spare)
    leaves the old state as it is, and the new one is written over `spare`, which is like it."""
    start = time.monotonic()
    num_rows = jax.tree.leaves(abstract_batch)[0].shape[0]
    place = partial(meshes.to_devices, mesh=mesh, num_rows=num_rows)
    rows, whole = meshes.by_rows(mesh), meshes.replicated(mesh)
    if executor == "pmap":
        step = jax.pmap(body, _PMAP_AXIS, in_axes=(None, 0), out_axes=None, devices=list(mesh.devices.flat), donate_argnums=0)
        abstract_batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((mesh.size, x.shape[0] // mesh.size, *x.shape[1:]), x.dtype), abstract_batch
        )
        place, lower = partial(_with_device_axis, mesh=mesh), step.lower  # under a mesh of its own
    else:
        if executor == "shard_map":
            specs = PartitionSpec(), PartitionSpec(meshes.AXES)
            # check_vma=False: with it gradients of what is replicated come summed already, and our psum would sum them again.
            body = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
        of_state = jax.tree.map(lambda x: x.sharding, abstract_state)
        shardings, written = ((of_state, rows, of_state), 2) if spare else ((of_state, rows), 0)
        step = jax.jit(body, in_shardings=shardings, out_shardings=(of_state, whole), donate_argnums=written)
        lower = meshes.on_mesh(step.lower, mesh)
    arguments = (abstract_state, abstract_batch, *[abstract_state] * spare)
    return Lowered(lower(*arguments), place, mesh, time.monotonic() - start)


def compiler_options(mesh: Mesh, options: Options = None) -> dict[str, str | bool | int | float]:
    """XLA's, for a step on this mesh: COMPILER_OPTIONS and these."""
    return {**COMPILER_OPTIONS.get(mesh.devices.flat[0].platform, {}), **(options or {})}


def compile_lowered(lowered: Lowered, options: Options = None) -> Program:
    """Raises UserError where the step needs more memory than a device has, before anything runs."""
    mesh = lowered.mesh
    start, limit = time.monotonic(), meshes.device_memory_bytes(mesh)
    try:
        compiled = lowered.step.compile(compiler_options=compiler_options(mesh, options) or None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"\(([\d.]+)G\) exceeds|[Uu]sed ([\d.]+)G of", str(error))
        raise TooLarge(int(float(used[1] or used[2]) * 2**30) if used else None, limit) from error
    allocator.release()
    peak_bytes = peak_memory(compiled, mesh)
    if limit and peak_bytes > limit:
        raise TooLarge(peak_bytes, limit)
    return Program(compiled, lowered.place, peak_bytes, lowered.secs + time.monotonic() - start, compiled)


def compile_step(
    body: Callable, abstract_state, abstract_batch, mesh: Mesh, executor: str, *, spare: bool = False, options: Options = None
) -> Program:
    """Compiles body(state, batch) -> (state, metrics) ahead of the first call, for one of `choose`'s executors.

    abstract_batch: of the global batch. spare: as `lower_step`. `options`: XLA's, for the compiler, beside COMPILER_OPTIONS.
    Raises UserError where the step needs more memory than a device has, before anything runs.
    """
    return compile_lowered(lower_step(body, abstract_state, abstract_batch, mesh, executor, spare), options)


class Programs:
    """One step body's programs, a shape of batch each, compiled when it is first met."""

    def __init__(self, body: Callable, abstract_state, mesh: Mesh, executor: str, num_rows: int, spare: bool = False):
        """num_rows: of the global batch; what `known` and `of` are asked about may be one host's share of it. spare: the body takes one,
        as `lower_step` says; a program writes the new state over the one that the step before it read."""
        self._compile = partial(compile_step, body, abstract_state, mesh=mesh, executor=executor, spare=spare)
        self._num_rows, self._takes_spare, self._spare = num_rows, spare, None
        self._programs: dict[tuple, Program] = {}

    def known(self, batch) -> Program | None:
        """The program for such a batch, where it is compiled."""
        return self._programs.get(_shapes(batch))

    def of(self, batch) -> Program:
        """The program for such a batch, concrete or abstract, compiled if need be. Raises UserError as `compile_step` does."""
        if (program := self.known(batch)) is None:
            rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((self._num_rows, *x.shape[1:]), x.dtype), batch)
            program = self._compile(abstract_batch=rows)
            if self._takes_spare:
                program = program._replace(run=partial(self._alternate, program.compiled))
            self._programs[_shapes(batch)] = program
        return program

    def _alternate(self, compiled: Callable, state, batch):
        spare = jax.tree.map(jnp.copy, state) if self._spare is None else self._spare
        new, metrics = compiled(state, batch, spare)
        self._spare = state
        return new, metrics

    def __len__(self) -> int:
        return len(self._programs)


def _shapes(batch) -> tuple:
    """What of a batch decides its program: all but the number of rows."""
    leaves, treedef = jax.tree.flatten(batch)
    return treedef, *((x.shape[1:], str(x.dtype)) for x in leaves)


def _with_device_axis(batch, mesh: Mesh):
    """What pmap takes: the only arrays of ours with a device axis."""
    return jax.tree.map(lambda x: jax.device_put(x.reshape(mesh.size, -1, *x.shape[1:]), meshes.by_rows(mesh)), batch)


def peak_memory(compiled: jax.stages.Compiled, mesh: Mesh) -> int:
    """Bytes that one device holds at most: the compiler's own figure on a TPU, elsewhere the sum of what it lists."""
    usage = compiled.memory_analysis()
    if mesh.devices.flat[0].platform == "tpu" and usage.peak_memory_in_bytes:
        return usage.peak_memory_in_bytes
    return usage.argument_size_in_bytes + usage.output_size_in_bytes - usage.alias_size_in_bytes + usage.temp_size_in_bytes

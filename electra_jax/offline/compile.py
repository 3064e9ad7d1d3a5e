"""Compiles a recipe's train step for a TPU that is not there, and says what it would need: memory, traffic, time.

libtpu holds the whole compiler, so that what it says of memory and of collectives is what runs. Of time it gives two estimates
(estimate.py). What to change where a step does not fit: suggest.py. The table of many compiles: scale.py.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from electra_jax.build import Devices, Parts, abstract_batch, build, pretraining_objective
from electra_jax.cli import one_line
from electra_jax.offline import estimate, hlo, simulator, topology
from electra_jax.parallel import chips, executors, mesh
from electra_jax.recipe import Recipe
from electra_jax.types import Vocabulary

# The compiler options of an effort. "low" is XLA's O1: it takes a fifth of the time, finds about the same peak of memory (docs/scale.md),
# and says nothing of speed. The option exec_time_optimization_effort changes neither the time nor the result.
EFFORTS = {"full": {}, "low": {"optimization_level": 19}}
SHARE = "/chip"


class Case(NamedTuple):
    """What to compile: a recipe's step, for one topology."""

    recipe: Recipe
    topology: str  # "v5e:4x4"; "v5e:4x4/chip" is one chip's share of it: its part of the rows on one device, without collectives
    effort: str = "full"

    def override(self, change: Mapping[str, Any]) -> "Case":
        """With these fields of the recipe, {"section.field": value}. Raises UserError where they contradict each other."""
        recipe = self.recipe
        for path, value in change.items():
            section, field = path.split(".")
            recipe = dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **{field: value})})
        return self._replace(recipe=recipe)


class Step(NamedTuple):
    """A case's step before the compiler has seen it. The recipe of `case` is resolved, with the rows and the mesh of the topology."""

    case: Case
    parts: Parts
    lowered: executors.Lowered


def lower(case: Case) -> Step:
    """Raises UserError for an unknown topology, or a recipe that cannot run there."""
    slices, devices = topology.devices(case.topology.removesuffix(SHARE))
    if case.topology.endswith(SHARE):
        alone = {"parallel.slices": 1, "parallel.data": 1, "parallel.fsdp": 1}
        case = case.override({"train.batch_rows": case.recipe.train.batch_rows // len(devices), **alone})
        devices = devices[:1]
    elif slices > 1 and case.recipe.parallel.slices == 1:
        case = case.override({"parallel.slices": slices})
    where = Devices.of(case.recipe, devices)
    case = case._replace(recipe=case.recipe.resolve(where.platform))
    recipe = case.recipe
    vocabulary = Vocabulary(101, 102, 103, np.zeros(recipe.model.vocab_size, bool))
    parts = build(recipe, where, pretraining_objective(recipe, vocabulary, where))
    rows = abstract_batch(recipe.train.batch_rows, recipe.data.length)
    with _no_source_lines():
        return Step(case, parts, executors.lower_step(parts.body, parts.abstract_state, rows, where.mesh, where.executor))


@contextlib.contextmanager
def _no_source_lines() -> Iterator[None]:
    """A Pallas kernel stands in its program as bytes, which would otherwise name the files and lines that it was traced from."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def compile_for(case: Case, estimated: bool = True) -> dict[str, Any]:
    """What the case's step needs: JSON values, `fits` among them. Raises UserError as `lower` does.

    estimated: with the time too, which needs full effort and a chip whose prices are known.
    """
    return compile_step(lower(case), estimated)


def described(step: Step) -> dict[str, Any]:
    """What is known of the step before it is compiled: JSON values."""
    recipe, parts = step.case.recipe, step.parts
    devices, state = parts.devices.mesh, jax.tree.leaves(parts.abstract_state)
    state_bytes = sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in state)
    return {
        "topology": step.case.topology,
        "device": parts.devices.platform.device_kind,
        "chips": devices.size,
        "mesh": {axis: size for axis, size in devices.shape.items() if size > 1},
        "executor": parts.devices.executor,
        "attention": recipe.model.attention,
        "remat": recipe.model.remat,
        "scan_layers": recipe.model.scan_layers,
        "batch_rows": recipe.train.batch_rows,
        "length": recipe.data.length,
        "accumulation_steps": recipe.train.accumulation_steps,
        "effort": step.case.effort,
        "hbm_gib": (mesh.device_memory_bytes(devices) or 0) / 2**30,
        "state_gib": state_bytes / 2**30,
        "flops_per_chip": parts.objective.flops(recipe.train.batch_rows, recipe.data.length) / devices.size,
    }


def compile_step(step: Step, estimated: bool = True) -> dict[str, Any]:
    """As `compile_for`."""
    result, chip, effort = described(step), chips.find(step.parts.devices.platform.device_kind), step.case.effort
    priced = effort == "full" and estimated and chip is not None and chip.clock_hz is not None
    kernels = _kernel_cycles(step) if priced else None  # before the compiler, because each of the two takes gigabytes of memory
    start = time.monotonic()
    try:
        program = executors.compile_lowered(step.lowered, EFFORTS[effort])
    except executors.TooLarge as error:
        need_gib = error.need_bytes / 2**30 if error.need_bytes else None
        return result | {"fits": False, "peak_gib": need_gib, "compile_secs": step.lowered.secs + time.monotonic() - start}
    usage = program.compiled.memory_analysis()
    result |= {
        "fits": True,
        "peak_gib": program.peak_bytes / 2**30,
        "arguments_gib": usage.argument_size_in_bytes / 2**30,
        "temporaries_gib": usage.temp_size_in_bytes / 2**30,
        "compile_secs": program.compile_secs,
    }
    try:
        module = hlo.Module(program.compiled.as_text())
    except jax.errors.JaxRuntimeError as error:  # seen on v6e: an instruction that XLA cannot print
        return result | {"unreadable": one_line(error)[:200]}
    found = hlo.collectives(module)
    result["collectives"] = estimate.traffic(found)
    if priced:
        result |= estimate.estimates(module, chip, result["flops_per_chip"], kernels, found)
    return result


def _kernel_cycles(step: Step) -> float | None:
    """Of the attention kernels of a whole step, on one chip; see simulator.kernel_cycles."""
    recipe, parts = step.case.recipe, step.parts
    networks = [recipe.model.encoder(name) for name in parts.objective.networks]
    rows = recipe.train.batch_rows // parts.devices.mesh.size // recipe.train.accumulation_steps
    cycles = simulator.kernel_cycles(step.case.topology.removesuffix(SHARE), networks, rows, recipe.data.length)
    return cycles and cycles * recipe.train.accumulation_steps


def lines(result: Mapping[str, Any]) -> list[str]:
    """A result for people."""
    mesh_words = " x ".join(f"{axis}={size}" for axis, size in result["mesh"].items()) or "one chip"
    peak = f"{result['peak_gib']:.2f} of" if result["peak_gib"] else "above the"
    out = [
        f"{result['topology']}: {result['chips']} x {result['device']}, {mesh_words}, {result['executor']}, "
        f"attention {result['attention']}, {result['batch_rows']} rows of {result['length']}",
        f"  memory a chip: {'fits' if result['fits'] else 'DOES NOT FIT'}, peak {peak} {result['hbm_gib']:.0f} GiB"
        + (f" (arguments {result['arguments_gib']:.2f}, temporaries {result['temporaries_gib']:.2f})" if result["fits"] else ""),
    ]
    for kind, found in result.get("collectives", {}).items():
        loops = f", {found['in_loops']} within loops" if found["in_loops"] else ""
        out.append(f"  {kind}: {found['count']} a step, {found['bytes'] / 2**20:,.1f} MiB, {'/'.join(found['dtypes'])}{loops}")
    if "unreadable" in result:
        out.append(f"  its text cannot be read ({result['unreadable']}): no collectives and no estimates")
    out.append(f"  {result['flops_per_chip']:.3g} model FLOPs a chip and step; compiled in {result['compile_secs']:.0f} s")
    if "secs_c" in result:
        out.append(
            f"  a step: C {1e3 * result['secs_c']:.1f} ms = {result['utilisation_c']:.1%} of the peak (pessimistic, no collectives), "
            f"composite {1e3 * result['secs_composite']:.1f} ms = {result['utilisation_composite']:.1%} (optimistic)"
        )
    return out

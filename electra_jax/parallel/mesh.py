"""The device mesh, and what a run takes from its platform: the type of products, and of how many masked slots a row has a multiple.

Axes: `slices` (data parallel over the data-center network), `data`, and `fsdp` (data parallel too, with parameters and optimizer
state cut over it). Rows are cut over all three.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from electra_jax.cli import UserError
from electra_jax.parallel import chips

AXES = ("slices", "data", "fsdp")


def make_mesh(slices: int = 1, data: int = -1, fsdp: int = 1, devices: Sequence | None = None) -> Mesh:
    """The mesh of these sizes, one of which may be -1: what the others leave. All devices are used (default: every one there is).

    On a TPU neighbours in the mesh are neighbours on the torus; a slice is one of the machine's own where it has several.
    UserError where the sizes do not divide the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _sizes({"slices": slices, "data": data, "fsdp": fsdp}, len(devices))
    numbers = [getattr(device, "slice_index", None) for device in devices]
    if devices[0].platform != "tpu" or None in numbers:
        grid = np.array(devices).reshape(sizes)
    elif len(set(numbers)) == 1:
        if sizes[0] > 1:
            raise UserError(f"parallel.slices is {sizes[0]} and the devices are one slice: --config.parallel.slices=1")
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        if sizes[0] != len(set(numbers)):
            raise UserError(f"parallel.slices is {sizes[0]} and the devices are {len(set(numbers))} slices: set it to that")
        within, between = (1, *sizes[1:]), (sizes[0], 1, 1)
        grid = mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def _sizes(sizes: dict[str, int], num_devices: int) -> tuple[int, ...]:
    words = " x ".join(f"{name}={size}" for name, size in sizes.items())
    if any(size == 0 or size < -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
        raise UserError(f"parallel: {words}: each size is at least 1, and one of them may be -1 (what the others leave)")
    known = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values() and num_devices % known == 0:
        return tuple(num_devices // known if size == -1 else size for size in sizes.values())
    if known != num_devices:
        raise UserError(
            f"a mesh of {words} does not fit {num_devices} device{'s' * (num_devices > 1)}: choose sizes whose product is "
            f"{num_devices}, such as --config.parallel.data=-1 --config.parallel.fsdp={math.gcd(num_devices, max(1, sizes['fsdp']))}"
        )
    return tuple(sizes.values())


@dataclasses.dataclass(frozen=True)
class Platform:
    name: str  # "cpu", "gpu" (NVIDIA's), "rocm" (AMD's) or "tpu"
    device_kind: str
    dtype: str  # of matrix products
    slots_multiple: int  # masked slots a row are padded to a multiple of this

    @classmethod
    def of(cls, mesh: Mesh) -> "Platform":
        """From the mesh's devices, never from the process's default backend, which is another during a compile for a TPU."""
        device = mesh.devices.flat[0]
        name = {"cuda": "gpu"}.get(device.platform, device.platform)
        if "rocm" in str(getattr(getattr(device, "client", None), "platform_version", "")).lower():
            name = "rocm"
        accelerator = name != "cpu"
        return cls(name, device.device_kind, "bfloat16" if accelerator else "float32", 8 if accelerator else 1)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The batch over all devices, by its leading axis."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def host_rows(mesh: Mesh, num_rows: int) -> np.ndarray:
    """Which of a global batch's rows this process's devices want, ascending; on some meshes they are not neighbours."""
    indices = by_rows(mesh).addressable_devices_indices_map((num_rows,)).values()
    return np.unique(np.concatenate([np.arange(num_rows, dtype=np.int32)[index] for index in indices]))


def to_devices(batch, mesh: Mesh, num_rows: int | None = None):
    """This host's rows (`host_rows`, in that order) of a batch of `num_rows` -> global arrays; each device gets its own by index.

    num_rows: None where the host holds the whole batch.
    """
    sharding = by_rows(mesh)
    if num_rows is None:
        return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), batch)
    rows = host_rows(mesh, num_rows)

    def place(x):
        def block(index: tuple[slice, ...]):
            start, stop, _ = index[0].indices(num_rows)
            first = int(np.searchsorted(rows, start))
            return x[first : first + stop - start]

        return jax.make_array_from_callback((num_rows, *x.shape[1:]), sharding, block)

    return jax.tree.map(place, batch)


def on_mesh(function: Callable, mesh: Mesh) -> Callable:
    """`function`, traced and run with this mesh as the one that sharding constraints speak of."""

    def run(*args):
        with jax.set_mesh(mesh):
            return function(*args)

    return run


def device_memory_bytes(mesh: Mesh) -> int | None:
    """What one device can hold: its own limit, or the host's memory (a container's, where it is smaller). None = unknown."""
    device = mesh.devices.flat[0]
    if device.platform != "cpu":
        chip = chips.find(device.device_kind)
        if chip is not None and chip.memory_gib:
            return chip.memory_gib << 30
        return (device.memory_stats() or {}).get("bytes_limit")
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(pathlib.Path(path).read_text()))
        except (OSError, ValueError):  # no cgroup, or "max"
            continue
    share = sum(other.process_index == device.process_index for other in mesh.devices.flat)  # fake devices of one host
    return min(limits) // share if limits else None

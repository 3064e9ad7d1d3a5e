"""The device mesh, and every choice that depends on the platform, made once from the mesh's devices."""

import dataclasses
import os
import pathlib

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")


def make_mesh(devices: list | None = None) -> Mesh:
    """A mesh (data, fsdp) over the given devices; by default the first one of this process."""
    devices = devices or jax.local_devices()[:1]
    return jax.make_mesh((len(devices), 1), AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


@dataclasses.dataclass(frozen=True)
class Platform:
    name: str  # "cpu", "gpu" or "tpu"
    device_kind: str
    dtype: str  # of matrix products
    slots_multiple: int  # masked slots a row are padded to a multiple of this

    @classmethod
    def of(cls, mesh: Mesh) -> "Platform":
        """From the mesh's devices, never from the process's default backend, which is another during a compile for a TPU."""
        device = mesh.devices.flat[0]
        name = "gpu" if device.platform in ("cuda", "rocm") else device.platform
        accelerator = name != "cpu"
        return cls(name, device.device_kind, "bfloat16" if accelerator else "float32", 8 if accelerator else 1)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The batch over all devices, by its leading axis."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def to_devices(batch, mesh: Mesh):
    """Host arrays of the global batch -> global arrays; each device gets its rows by index."""
    sharding = by_rows(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), batch)


def device_memory_bytes(mesh: Mesh) -> int | None:
    """What one device can hold: its own limit, or the host's memory (a container's, where it is smaller). None = unknown."""
    device = mesh.devices.flat[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if hasattr(os, "sysconf") else []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(pathlib.Path(path).read_text()))
        except (OSError, ValueError):  # no cgroup, or "max"
            continue
    return min(limits, default=None)

"""A checksum of an array that is the same on any mesh, computed where the array lies. What counts as damaged: damage.py.

Orbax notices a file that is missing or cut short, but a flipped byte in the data of an array restores as another number. So each
array has a checksum, taken before a save and again after a restore.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from electra_jax.types import Array


def checksum(x: Array) -> Array:
    """uint32 scalar: the sum of (2i + 1) x bits_i mod 2**32 over the flattened global array; traceable.

    bits_i are an element's bits, narrow ones widened; an element of 64 bits is two words, the low one first. The sum has no
    order, so it is the same on any mesh; the weights are odd, or a flipped high bit would fall out of the product.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    # An index from the iotas of the axes, because flattening would move a sharded array. uint32 wraps, as it should.
    index, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum((2 * index + 1) * bits, dtype=jnp.uint32)


def host_checksum(x: np.ndarray) -> int:
    """The same number from a host array, in cache-sized blocks."""
    words = np.ascontiguousarray(x).reshape(-1).view(_WORDS[x.dtype.itemsize])
    total, weights = 0, 2 * np.arange(2**16, dtype=np.uint32) + 1
    for start in range(0, words.size, weights.size):
        bits = words[start : start + weights.size].astype(np.uint32, copy=False)
        total += int(np.dot(weights[: bits.size], bits)) + 2 * start * int(bits.sum(dtype=np.uint64))
    return total % 2**32


_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}


@functools.cache
def _device_checksums(out_sharding: jax.sharding.Sharding | None) -> Callable[[list[Array]], Array]:
    return jax.jit(lambda arrays: jnp.stack([checksum(x) for x in arrays]), out_shardings=out_sharding)


def checksums(arrays: Mapping[str, Array]) -> dict[str, int]:
    """The checksum of each array, by name, without moving them; of keys take their words.

    On a CPU numpy reads the arrays where they lie: compiling the program for 200 of them takes 10 s there, more than a
    small run's whole time for checkpoints. Elsewhere it is one program on the devices, and only the sums come to the host.
    """
    here = all(x.is_fully_addressable or x.is_fully_replicated for x in arrays.values())
    if here and all(next(iter(x.devices())).platform == "cpu" for x in arrays.values()):
        return {name: host_checksum(np.asarray(x)) for name, x in arrays.items()}
    mesh = getattr(next(iter(arrays.values())).sharding, "mesh", None)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()) if mesh is not None else None  # for each process to read
    return dict(zip(arrays, np.asarray(_device_checksums(whole)(list(arrays.values()))).tolist(), strict=True))

"""Randomness that does not know how many devices there are.

Row keys are fold_in(fold_in(fold_in(root, stream), step), row): masks and noise are the same bits on one device or on a
thousand, after a restart, under any executor. Threefry throughout (the only implementation besides philox whose vmap over
keys is exact); dropout alone takes its bits from a counter hash that the row's threefry key seeds.
"""

import zlib
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from electra_jax.types import Array


def root_key(seed: int) -> Array:
    return jax.random.key(seed, impl="threefry2x32")


def key_words(key: Array) -> Array:
    """uint32 [2]: a key as plain numbers, for a state that is copied, saved and read on the host like any array."""
    return jax.random.key_data(key)


def from_words(words: Array) -> Array:
    return jax.random.wrap_key_data(words, impl="threefry2x32")


class StepRng(flax.struct.PyTreeNode):
    """The random streams of one step. Evaluation uses a constant step, so that its numbers compare over time."""

    root: Array
    step: Array

    def row_keys(self, stream: str, row_B: Array) -> Array:
        """One key a row, [B], for a named stream."""
        key = jax.random.fold_in(jax.random.fold_in(self.root, zlib.crc32(stream.encode())), self.step)
        return jax.vmap(partial(jax.random.fold_in, key))(row_B)

    def uniform(self, stream: str, row_B: Array, shape: tuple[int, ...]) -> Array:
        """float32 in [0, 1), [B, *shape]."""
        return jax.vmap(lambda key: jax.random.uniform(key, shape, jnp.float32))(self.row_keys(stream, row_B))

    def seeds(self, stream: str, row_B: Array) -> Array:
        """uint32 [B, 2]: what the dropout hash of a row starts from."""
        return jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(self.row_keys(stream, row_B))


def mix32(x: Array) -> Array:
    """A bijection of uint32 with low bias ('lowbias32', nullprogram.com/blog/2018/07/31)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def site_seeds(seeds_Bx2: Array, layer: Array | int, place: int) -> Array:
    """The rows' seeds for one place of one layer; `layer` may be traced (scan)."""
    site = jnp.asarray(layer, jnp.uint32) * jnp.uint32(64) + jnp.uint32(place)
    return mix32(seeds_Bx2 ^ mix32(site * jnp.uint32(0x9E3779B9) + jnp.uint32(0x85EBCA6B)))


def keep_mask(seeds_Bx2: Array, shape: tuple[int, ...], rate: float) -> Array:
    """bool [B, *shape], True with probability 1 - rate: a hash of (the row's seed, the element's index within the row).

    The second seed word enters between the two rounds, so that no two seeds give shifted copies of one stream.
    """
    rows = seeds_Bx2.shape[:1] + shape
    # Made in its shape, and for every row: to reshape a flat count is a copy on a TPU, to broadcast one row's an array in memory.
    index, stride = jnp.zeros(rows, jnp.uint32), 1
    for axis in reversed(range(1, len(rows))):
        index += jax.lax.broadcasted_iota(jnp.uint32, rows, axis) * jnp.uint32(stride)
        stride *= rows[axis]
    first, second = (seeds_Bx2[:, i].reshape(-1, *(1,) * len(shape)) for i in range(2))
    x = index ^ first
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15) ^ second) * jnp.uint32(0x846CA68B)
    x = x ^ (x >> 16)
    return x >= jnp.uint32(round(rate * 2**32))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def dropout(x: Array, seeds_Bx2: Array, rate: float) -> Array:
    """Zeroes elements of x [N, ...] with probability `rate` and scales the rest by 1 / (1 - rate), in at least float32 (the scale itself
    would be rounded to bfloat16 otherwise: 1.109 for 1.111).

    N is a multiple of B: the leading axis is the rows' (row-major, so [B x L, H] is welcome). The mask is computed again in
    the backward pass: it is cheaper to hash than to read back.
    """
    shape = (x.shape[0] // seeds_Bx2.shape[0], *x.shape[1:])
    mask = keep_mask(seeds_Bx2, shape, rate).reshape(x.shape)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    scaled = (x.astype(wide) * jnp.asarray(1.0 / (1.0 - rate), wide)).astype(x.dtype)
    return jnp.where(mask, scaled, jnp.zeros((), x.dtype))


def _dropout_fwd(x, seeds_Bx2, rate):
    return dropout(x, seeds_Bx2, rate), seeds_Bx2


def _dropout_bwd(rate, seeds_Bx2, g):
    return dropout(g, seeds_Bx2, rate), None


dropout.defvjp(_dropout_fwd, _dropout_bwd)

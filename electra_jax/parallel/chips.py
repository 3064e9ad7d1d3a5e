"""What is known of accelerators by their name: one table.

TPU: cloud.google.com/tpu/docs, per jax device, which from v4 on is a whole chip. NVIDIA: the data sheets' tensor-core figures without
sparsity, SXM unless the name says otherwise. Clocks: measured by one product of matrices each (v6e: assumed).
"""

from typing import NamedTuple


class Chip(NamedTuple):
    name: str
    bfloat16_flops: float | None = None  # peak of dense matrix products, FLOP/s
    memory_gib: int | None = None  # for a compile where there is no such device to ask
    memory_bytes_per_sec: float | None = None
    link_bytes_per_sec: float | None = None  # half of the sum of a chip's links
    clock_hz: float | None = None


CHIPS = (  # the first whose name is found, as whole words, in the device's kind
    Chip("tpu v4 lite", 138e12),
    Chip("tpu v4", 275e12, 32, 1228e9, 150e9, 1.05e9),
    Chip("tpu v5 lite", 197e12, 16, 819e9, 100e9, 1.503e9),
    Chip("tpu v5e", 197e12, 16, 819e9, 100e9, 1.503e9),
    Chip("tpu v5", 459e12, 95, 2765e9, 300e9, 1.75e9),
    Chip("tpu v5p", 459e12, 95, 2765e9, 300e9, 1.75e9),
    Chip("tpu v6 lite", 918e12, 32, 1640e9, 224e9, 1.75e9),
    Chip("tpu v6e", 918e12, 32, 1640e9, 224e9, 1.75e9),
    Chip("tpu7x", memory_gib=96),
    Chip("b200", 2250e12),
    Chip("h200 nvl", 835e12),
    Chip("h200", 989e12),
    Chip("gh200", 989e12),
    Chip("h100 pcie", 756e12),
    Chip("h100 nvl", 835e12),
    Chip("h100", 989e12),
    Chip("a100", 312e12),
    Chip("l40s", 362e12),
    Chip("l4", 121e12),
    Chip("a10g", 70e12),
)


def find(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None where it is not known."""
    words = device_kind.lower().replace("-", " ").split()
    return next((chip for chip in CHIPS if _contains(words, chip.name.split())), None)


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Peak FLOP/s of one device in matrix products; None if not known.

    float32 is what jax multiplies by default: one bfloat16 pass on a TPU, TF32 (half the rate) on NVIDIA.
    """
    chip = find(device_kind)
    if chip is None or chip.bfloat16_flops is None:
        return None
    if dtype in ("bfloat16", "float16"):
        return chip.bfloat16_flops
    if dtype == "float32":
        return chip.bfloat16_flops if chip.name.startswith("tpu") else chip.bfloat16_flops / 2
    return None


def _contains(words: list[str], name: list[str]) -> bool:
    """Whole words, so that an L40 is no L4."""
    return any(words[i : i + len(name)] == name for i in range(len(words)))

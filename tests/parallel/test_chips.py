"""What is known of chips by the kind that a device names."""

import pytest

from electra_jax.parallel.chips import find, peak_flops


@pytest.mark.parametrize(
    "kind, dtype, peak",
    [
        ("TPU v4", "bfloat16", 275e12),
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v5", "bfloat16", 459e12),
        ("TPU v5", "float32", 459e12),
        ("TPU v6 lite", "bfloat16", 918e12),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA A100-SXM4-80GB", "float32", 156e12),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA H200", "bfloat16", 989e12),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("NVIDIA L40", "bfloat16", None),
        ("NVIDIA H100 80GB HBM3", "float64", None),
        ("cpu", "float32", None),
    ],
)
def test_peaks_by_device_kind(kind, dtype, peak):
    assert peak_flops(kind, dtype) == peak


def test_a_chip_is_found_by_whole_words():
    assert find("TPU v5 lite").memory_gib == 16 and find("TPU v5").memory_gib == 95 and find("TPU7x").memory_gib == 96
    assert find("TPU v4").clock_hz and find("NVIDIA H100 80GB HBM3").clock_hz is None
    assert find("NVIDIA L40") is None and find("cpu") is None

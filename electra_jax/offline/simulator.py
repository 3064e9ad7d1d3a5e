"""Cycles of the attention kernels in a step, as libtpu's simulator counts them ("STATIC-LLO"): the compiler itself prices no kernel.

libtpu reads its options once in a process, so that each kernel is compiled in a process of its own.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from electra_jax.models.attention import row_kernel, rows, splash
from electra_jax.models.config import EncoderConfig
from electra_jax.offline import topology
from electra_jax.parallel import mesh

# The kernels of a path of attention by their names in the compiled program: forward and backward.
_KERNELS = {
    "rows": (row_kernel.FORWARD + ".1", row_kernel.BACKWARD + ".1"),
    "splash": ("splash_mha_fwd_segmented_residuals.1", "splash_mha_dkv_segmented_no_residuals.1"),
}
_ONE_KERNEL = """
import sys
from electra_jax.offline import simulator
simulator.compile_attention(*sys.argv[1:3], *map(int, sys.argv[3:]))
"""


def kernel_cycles(name: str, networks: Sequence[EncoderConfig], num_rows: int, length: int) -> float | None:
    """Cycles, on one chip of the topology `name`, of all attention kernels that a step of `num_rows` rows runs in these networks.

    0 where there are none, None where the simulator cannot say. The simulator's memory grows with heads and rows, so that at most 12
    heads are simulated and more are counted in proportion (docs/scale.md says how much that misses).
    """
    total = 0.0
    for network in networks:
        kernels = _KERNELS.get(network.attention, ())
        for kernel in kernels:
            heads = max(n for n in range(1, 13) if network.num_heads % n == 0)
            cycles = _simulated(name, network.attention, kernel, num_rows, length, heads, network.head_size)
            if cycles is None:
                return None
            again = 1 + (kernel == kernels[0] and network.remat != "none")  # the backward pass runs the forward kernel again
            total += cycles * network.num_heads / heads * network.num_layers * again
    return total


def _simulated(name: str, path: str, kernel: str, *shape: int) -> int | None:
    with tempfile.TemporaryDirectory() as folder:
        options = f"--xla_jf_dump_static_llo_profile_to={folder} --xla_jf_dump_only_matching_hlo={kernel}"
        command = [sys.executable, "-c", _ONE_KERNEL, name, path, *map(str, shape)]
        subprocess.run(command, env={**os.environ, "LIBTPU_INIT_ARGS": options}, capture_output=True, check=False)
        texts = [path.read_text() for path in Path(folder).iterdir()]
    match = re.search(r"estimated_cycles: (\d+)", " ".join(texts))
    return int(match[1]) if match else None


def compile_attention(name: str, path: str, num_rows: int, length: int, heads: int, head_size: int) -> None:
    """Compiles one layer's attention, forward and backward, for one chip: what `_simulated` runs in a process of its own."""
    devices = mesh.make_mesh(devices=topology.devices(name)[1][:1])
    q = jax.ShapeDtypeStruct((num_rows, length, heads * head_size), np.dtype("bfloat16"))
    bias = jax.ShapeDtypeStruct((heads * head_size,), np.dtype("float32"))

    def attend(qkv, biases, segments):
        if path == "rows":
            return rows.attend(qkv, biases, segments, head_size)
        return splash.attend(*(x.reshape(num_rows, length, heads, head_size) for x in qkv), segments)

    @partial(jax.grad, argnums=(0, 1))
    def loss(qkv, biases, segments):
        with jax.named_scope("attention"):  # without a scope the kernels' names would tell of jvp and transpose
            return attend(qkv, biases, segments).astype("float32").sum()

    whole, segments = mesh.replicated(devices), jax.ShapeDtypeStruct((num_rows, length), np.int32)
    jax.jit(loss, in_shardings=whole, out_shardings=whole).lower([q] * 3, [bias] * 3, segments).compile()

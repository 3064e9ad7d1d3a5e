"""libtpu's simulator counts the cycles of a Pallas kernel ("STATIC-LLO"): one kernel a process, because libtpu reads its options once."""

import os
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import jax
import numpy as np

from electra_jax.models.attention import row_kernel, rows, splash
from electra_jax.models.config import ElectraConfig
from electra_jax.offline import topology
from electra_jax.parallel import mesh

# (forward, backward) of a path of attention
_KERNELS = {
    "rows": (row_kernel.FORWARD + ".1", row_kernel.BACKWARD + ".1"),
    "splash": ("splash_mha_fwd_segmented_residuals.1", "splash_mha_dkv_segmented_no_residuals.1"),
}
_ONE_KERNEL = """
import sys
from electra_jax.offline import simulator
simulator.compile_attention(*sys.argv[1:3], *map(int, sys.argv[3:]))
"""


def kernel_cycles(name: str, model: ElectraConfig, rows: int, length: int) -> float | None:
    """Cycles, on one chip of the topology `name`, of all attention kernels of a step on `rows` rows.

    0 where there is none, None where the simulator cannot say. Of more than 12 heads a part is simulated and scaled, because 16 heads of
    8 rows want more than 14 GB (three times 4 heads of 16 rows were 6% below 12 heads).
    """
    if model.attention not in _KERNELS:
        return 0.0
    total = 0.0
    for network in (model.generator, model.discriminator):
        for kernel in _KERNELS[model.attention]:
            heads = max(n for n in range(1, 13) if network.num_heads % n == 0)
            cycles = _simulated(name, model.attention, kernel, rows, length, heads, network.head_size)
            if cycles is None:
                return None
            again = 1 + (kernel == _KERNELS[model.attention][0] and network.remat != "none")  # computed again in the backward pass
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
    """Compiles one layer's attention, forward and backward, for one chip: what `_simulated` looks into."""
    devices = mesh.make_mesh(devices=topology.devices(name)[1][:1])
    q = jax.ShapeDtypeStruct((num_rows, length, heads * head_size), np.dtype("bfloat16"))
    bias = jax.ShapeDtypeStruct((heads * head_size,), np.dtype("float32"))

    def attend(qkv, biases, segments):
        if path == "rows":
            return rows.attend(qkv, biases, segments, head_size)
        return splash.attend(*(x.reshape(num_rows, length, heads, head_size) for x in qkv), segments)

    @partial(jax.grad, argnums=(0, 1))
    def loss(qkv, biases, segments):
        with jax.named_scope("attention"):  # or the kernels' names would tell of jvp and transpose
            return attend(qkv, biases, segments).astype("float32").sum()

    whole, segments = mesh.replicated(devices), jax.ShapeDtypeStruct((num_rows, length), np.int32)
    jax.jit(loss, in_shardings=whole, out_shardings=whole).lower([q] * 3, [bias] * 3, segments).compile()

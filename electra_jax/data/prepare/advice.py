"""What to train on the rows that were just prepared: the preset, its steps, and why. No jax: the devices are seen by their files."""

import glob
import importlib.util
import os
import shlex

from electra_jax.data.config import ENOUGH_EPOCHS, FEWEST_STEPS
from electra_jax.limits import available_cores

TINY_TOKENS_PER_CORE_SEC = 10_000  # of the tiny preset with a small vocabulary; measured: 8,000 to 12,000
CPU_SECS = 3600.0  # a first run is to end within an hour
# preset: rows a step, the published steps, and from how many tokens on an accelerator is it worth its parameters
PRESETS = {"base": (256, 766_000, 2_000_000_000), "small": (128, 1_000_000, 50_000_000), "tiny": (32, 100_000, 0)}


def accelerator() -> str:
    """GPU, TPU or "": where a device lies in /dev, and what jax needs to use it is installed."""

    def has(*modules: str) -> bool:
        return any(importlib.util.find_spec(module) for module in modules)

    if os.path.exists("/dev/nvidia0") and has("jax_cuda12_plugin", "jax_cuda13_plugin"):
        return "GPU"
    return "TPU" if (glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")) and has("libtpu") else ""


def command(rows: int, tokens: int, length: int, output: str) -> list[str]:
    """Two lines: what fits and why, and the command."""
    found, cores = accelerator(), available_cores()
    preset = next(name for name, (_, _, least) in PRESETS.items() if name == "tiny" or (found and tokens >= least))
    batch, most, _ = PRESETS[preset]
    steps, limit = max(FEWEST_STEPS, ENOUGH_EPOCHS * rows // batch), ""
    if not found:
        per_step_secs = batch * length / (TINY_TOKENS_PER_CORE_SEC * cores)
        most = min(most, max(FEWEST_STEPS, int(CPU_SECS / per_step_secs)))
    if steps > most:
        steps, limit = most, " (what an hour allows here)" if not found else " (as published)"
    elif steps == FEWEST_STEPS:
        limit = " (fewer teach it little)"
    time = "" if found else f", about {max(1, round(steps * per_step_secs / 60))} min where nothing else runs"
    machine = found or f"{cores} CPU core{'s' if cores > 1 else ''}"
    flags = f" --config.train.steps={steps}"
    if length > 512 and preset != "tiny":
        flags += f" --config.model.max_length={length}"
    return [
        f"next, {preset} because of {machine} and {tokens / 1e6:,.1f} M tokens; {steps:,} steps{limit} are {_number(steps * batch / rows)} "
        f"epochs{time}:",
        f"  python launch/pretrain.py --config=configs/pretrain.py:{preset} "
        f"--workdir=runs/{shlex.quote(os.path.basename(os.path.abspath(output)))} --config.data.path={shlex.quote(output)}{flags}",
    ]


def _number(epochs: float) -> str:
    return f"{epochs:,.0f}" if epochs >= 10 else f"{epochs:.2g}"

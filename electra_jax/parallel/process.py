"""What a process of ours settles before jax makes its first array."""

import os

from electra_jax import limits
from electra_jax.cli import UserError, one_line
from electra_jax.parallel import allocator

_XLA_THREADS = 256  # some; their number follows from the cores and devices
MOST_CORES = 16  # a device each, with threads of its own


def require_devices() -> None:
    """UserError where jax finds none of the kind that JAX_PLATFORMS asks for. Several processes must have joined before."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where a plugin of that kind is not installed
        asked = os.environ.get("JAX_PLATFORMS")
        words = one_line(error) or "its plugin is not installed"
        if not asked:
            raise UserError(f"jax finds no device ({words}): JAX_PLATFORMS=cpu runs on the processor") from None
        raise UserError(f"jax finds no device of JAX_PLATFORMS={asked} ({words}): install jax for it, or leave JAX_PLATFORMS out") from None


def take_cores_as_devices() -> None:
    """On a CPU, each core (of at most MOST_CORES) becomes a device, unless JAX_NUM_CPU_DEVICES says otherwise; before anything asks for
    devices.

    For programs whose rows never meet: each core then computes its rows by itself, and need not wait for the others after every product.
    """
    import jax

    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", min(limits.available_cores(), MOST_CORES))


def prepare() -> None:
    """Memory that stays, programs that run within the call, and a cache of compiled ones. Imports jax, after the C library is told.

    UserError where the system leaves too little room for jax to start.
    """
    if limits.on_memory():
        limits.require_threads(_XLA_THREADS)  # XLA aborts the process where it gets too few
    allocator.keep_memory()
    from electra_jax.parallel import compilation, executors

    executors.run_in_the_call()
    compilation.keep_programs()

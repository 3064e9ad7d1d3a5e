"""What a process of ours settles before jax makes its first array."""

from electra_jax.parallel import allocator


def prepare() -> None:
    """Memory that stays, programs that run within the call, and a cache of compiled ones. Imports jax, after the C library is told."""
    allocator.keep_memory()
    from electra_jax.parallel import compilation, executors

    executors.run_in_the_call()
    compilation.keep_programs()

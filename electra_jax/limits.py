"""Limits that the system sets a process, asked for where a library that meets one would hang or abort without a word."""

import os
import resource
import threading

from electra_jax.cli import UserError


def require_threads(count: int) -> None:
    """UserError where the system refuses so many threads at once: too little address space for their stacks, or too few processes."""
    release = threading.Event()
    threads = [threading.Thread(target=release.wait, daemon=True) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError as error:
        raise UserError(
            f"the system refuses the {count} threads that this needs ({error}): raise its limit on memory (ulimit -v), on threads "
            "(ulimit -u), or on the container's processes"
        ) from None
    finally:
        release.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def available_cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_memory() -> bool:
    """Whether the process may not map as much as it likes."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY

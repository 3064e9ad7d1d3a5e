"""How steps on a CPU come by their memory: glibc keeps what a step frees, and hands back what is torn into holes."""

import ctypes
import mmap
import sys
from collections.abc import Callable


def _glibc():
    """The C library where it is glibc, else None."""
    try:
        libc = ctypes.CDLL("libc.so.6") if sys.platform.startswith("linux") else None
        return libc if libc and libc.mallopt and libc.malloc_trim else None
    except (OSError, AttributeError):
        return None


def keep_memory() -> bool:
    """Tells glibc's malloc to keep what a step frees instead of handing it back to the kernel after every step.

    Without it a step of `small` on a CPU takes 300,000 page faults and a fifth of its time for them. All four settings
    together, and before the first allocation of jax; elsewhere than on glibc it does nothing and returns False.
    """
    libc = _glibc()
    if libc is None:
        return False
    mmap_max, trim_threshold, arena_max, top_pad = -4, -1, -8, -2  # <malloc.h>
    settings = ((mmap_max, 0), (trim_threshold, -1), (arena_max, 1), (top_pad, 2**30))
    return all(libc.mallopt(name, value) == 1 for name, value in settings)


def release() -> None:
    """Hands back to the kernel what is free now. After a compile: its 0.7 GiB for `small` are too scattered for a step to lie in."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def bounded(run: Callable, step_bytes: int) -> Callable:
    """`run`, before which memory is handed back once the process holds more than three times `step_bytes` above the present.

    XLA takes a step's memory as one block and asks for 96 bytes more than the block, to align it: what one step leaves may be just too
    small for the next. On a busy machine the process grew by 1.4 GiB every second step of `small`.
    """
    limit = resident_bytes() + 3 * step_bytes

    def run_bounded(*args):
        nonlocal limit
        if resident_bytes() > limit:
            release()
            limit = max(limit, resident_bytes() + 2 * step_bytes)  # what others hold by right is not handed back again and again
        return run(*args)

    return run_bounded


def resident_bytes() -> int:
    """Of this process; 0 where the system does not say so in /proc."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0

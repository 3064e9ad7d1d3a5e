"""Settings of glibc's malloc for steps on a CPU: it keeps what a step frees, and hands back what a compile leaves."""

import ctypes
import sys


def _glibc():
    """The C library where it is glibc, else None."""
    try:
        libc = ctypes.CDLL("libc.so.6") if sys.platform.startswith("linux") else None
        return libc if libc and libc.mallopt and libc.malloc_trim else None
    except (OSError, AttributeError):
        return None


def keep_memory() -> bool:
    """Tells glibc's malloc to keep what a step frees instead of handing it back to the kernel after every step.

    Without it a step of `small` on a CPU takes 300,000 page faults and a fifth of its time for them. All three settings
    together, and before the first allocation of jax; elsewhere than on glibc it does nothing and returns False.
    Threads keep arenas of their own (M_ARENA_MAX): in a single one they wait for each other where a compile has left it in pieces,
    1,900 times a step of `small` instead of 400, and the first start's steps are 15% slower than those of a start with its cache.
    """
    libc = _glibc()
    if libc is None:
        return False
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # <malloc.h>
    settings = ((mmap_max, 0), (trim_threshold, -1), (top_pad, 2**30))
    return all(libc.mallopt(name, value) == 1 for name, value in settings)


def release() -> None:
    """Hands back to the kernel what is free now. After a compile: its 0.7 GiB for `small` are too scattered for a step to lie in."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)

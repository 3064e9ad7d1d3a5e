"""What the C library is told, in a process of its own: malloc's settings hold for a whole process."""

import subprocess
import sys

import pytest

from electra_jax.parallel import allocator

if not sys.platform.startswith("linux"):
    pytest.skip("the settings are glibc's", allow_module_level=True)

PROGRAM = """
import ctypes, resource
from electra_jax.parallel import allocator
MIB = 2**20
assert allocator.keep_memory()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def use(size):  # a step: takes a block, writes to it, gives it back
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    return block

libc.free(use(200 * MIB))
faults, held = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, allocator.resident_bytes()
libc.free(use(200 * MIB))
assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 100, "the second step came by new pages"
assert allocator.resident_bytes() >= held > 200 * MIB
allocator.release()
assert allocator.resident_bytes() < held - 190 * MIB, "nothing was handed back"

# Steps that each need a little more than the one before left: what they leave is handed back in time.
pins = []
def growing(size=[100 * MIB]):
    size[0] += 64
    block = use(size[0])
    pins.append(libc.malloc(210 * MIB))  # above it, because no hole is so large, and never written to: the block stays a hole
    libc.free(block)
    return allocator.resident_bytes()
start, run = allocator.resident_bytes(), allocator.bounded(growing, 100 * MIB)
assert max(run() for _ in range(12)) < start + 450 * MIB, "more than three steps' memory, and one"
assert max(growing() for _ in range(12)) > start + 450 * MIB, "the test cannot tell"
"""


def test_memory_is_kept_released_and_bounded():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_memory()
    allocator.release()

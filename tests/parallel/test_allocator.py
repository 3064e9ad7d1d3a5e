"""What the C library and jax's CPU client are told, each in a process of its own: it holds for a whole process."""

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
def resident_bytes():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
assert allocator.keep_memory()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def use(size):  # a step: takes a block, writes to it, gives it back
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    return block

libc.free(use(200 * MIB))
faults, held = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, resident_bytes()
libc.free(use(200 * MIB))
assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults < 100, "the second step came by new pages"
assert resident_bytes() >= held > 200 * MIB
allocator.release()
assert resident_bytes() < held - 190 * MIB, "nothing was handed back"
"""


def test_memory_is_kept_and_released():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_memory()
    allocator.release()


RUNNING = """
import sys
from electra_jax.parallel import executors
if sys.argv[1] == "ours":
    executors.run_in_the_call()
import jax, jax.numpy as jnp
product = jax.jit(lambda x: (x @ x @ x).sum())
x = jnp.ones((1500, 1500))
product(x).block_until_ready()
print(product(x).is_ready())
"""


@pytest.mark.parametrize("whose, ready", [("ours", "True"), ("jax's", "False")])
def test_a_program_runs_within_the_call(whose, ready):
    done = subprocess.run([sys.executable, "-c", RUNNING, whose], capture_output=True, text=True)
    assert done.stdout.strip() == ready, done.stderr

"""The cache of compiled programs on disk: what one start compiles, the next ones load. (What compiles the step: executors.py.)"""

import contextlib
import os
import pathlib

import jax
from jax._src import compilation_cache  # how jax packs an entry has no public name

MAX_BYTES = 2 << 30  # the step of `small` is 0.8 MB on a CPU
_MIN_COMPILE_SECS = 0.1  # jax's own 1.0 leaves out the small programs of a start, which add up


def keep_programs() -> pathlib.Path | None:
    """Keeps compiled programs in $XDG_CACHE_HOME/electra_jax/programs (~/.cache/...); call it before anything is compiled.

    `small` on 2 CPU cores takes 41 CPU-seconds to the end of its first step at the first start and 9.5 at the second. Same program,
    same bits; jax's key holds the program, the options, the versions and the CPU's instruction set, so that machines may share a
    home. Of several processes the first one alone writes.

    Returns the folder; None where it cannot be written, or where the environment decides: JAX_COMPILATION_CACHE_DIR=FOLDER (or
    gs://...) keeps them elsewhere by jax's own rules, JAX_ENABLE_COMPILATION_CACHE=false nowhere.
    """
    if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:
        return None
    try:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(home, "electra_jax", "programs").absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # who may write here could run code as this user
        tidy(folder)
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECS)
    return folder


def tidy(folder: pathlib.Path, max_bytes: int = MAX_BYTES) -> None:
    """Removes torn entries, and the oldest ones beyond `max_bytes`. OSError where the folder cannot be written.

    jax writes an entry in place: a kill or a full disk tears it, and a torn entry is never written again. So each is unpacked
    once, at the start after the one that wrote it. (jax's own limit on the size stops at an entry torn in another way.)
    """
    mark = folder / "checked"
    checked_ns = mark.stat().st_mtime_ns if mark.exists() else 0
    mark.touch()
    stats = {}
    for path in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process tidies too
            stats[path] = path.stat()
    kept_bytes = 0
    for path, stat in sorted(stats.items(), key=lambda item: item[1].st_mtime_ns, reverse=True):
        kept_bytes += stat.st_size
        if kept_bytes > max_bytes or (stat.st_mtime_ns >= checked_ns and _is_torn(path)):
            path.unlink(missing_ok=True)


def _is_torn(path: pathlib.Path) -> bool:
    try:
        compilation_cache.decompress_executable(path.read_bytes())
    except Exception:  # whatever zstandard or zlib raise; a file that is gone needs no more
        return True
    return False

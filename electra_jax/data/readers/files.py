"""The files that an input names, in a fixed order, and what the system says of a file that cannot be read."""

import contextlib
import errno
import glob
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from electra_jax.cli import UserError
from electra_jax.data.readers import scheme_of


def find(item: str, leave_out: str | None = None) -> Iterator[tuple[str, str]]:
    """(path relative to the input, path) of what an input names: a file, a folder's files, a glob's. Sorted, none twice.

    Hidden files and folders are passed over, and so is the folder `leave_out`. Folders that are links are followed, each once.
    """
    if scheme_of(item):
        yield item, item
    elif os.path.isfile(item):
        yield os.path.basename(item), item
    elif os.path.isdir(item):
        yield from _walk(item, item, _outside(item, leave_out))
    elif glob.has_magic(item) and (matches := glob.glob(item, recursive=True)):
        fixed = os.path.dirname(item[: re.search(r"[*?\[]", item).start()]) or "."
        leave_out, found = _outside(fixed, leave_out), set()  # a folder and a file in it may both match
        for match in matches:
            if not _within(match, leave_out):
                found.update(_walk(match, fixed, leave_out) if os.path.isdir(match) else [(_relative(match, fixed), match)])
        yield from sorted(found)
    else:
        raise UserError(f"{item}: no such file or folder, and no file matches it")


def _relative(path: str, folder: str) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _within(path: str, folder: str | None) -> bool:
    return folder is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _outside(root: str, leave_out: str | None) -> str | None:
    """`leave_out`; None where the input itself lies in it: such an input is read, and preparation then refuses its output as not empty."""
    return None if _within(root, leave_out) else leave_out


def is_special(path: str) -> bool:
    """A pipe, socket or device: reading one may never end."""
    return os.path.exists(path) and not os.path.isfile(path)


def _walk(folder: str, relative_to: str, leave_out: str | None) -> list[tuple[str, str]]:
    paths, visited = [], {os.path.realpath(leave_out)} if leave_out else set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:  # through a link to a folder above, or the folder that is left out
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [os.path.join(parent, name) for name in files if not name.startswith(".")]
    return sorted((_relative(path, relative_to), path) for path in paths)


def size_of(path: str) -> int:
    with reading(path):
        return os.path.getsize(path)


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turns what decompressors and the system raise about a file into one line that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile) as error:
        code = getattr(error, "errno", None)
        if code == errno.ENOSPC:
            raise
        if code is not None:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        raise UserError(f"{path} is damaged or cut short ({error}): make or download it again") from None

"""When a step of a checkpoint counts as damaged: when what reads it finds its format broken. An error that the machine may be the cause of
sets nothing aside: a good checkpoint would be lost with it.

Beside these, checkpoints.py calls a step damaged whose metadata differ from their SHA-256, and one whose arrays have other checksums.
"""

import contextlib
import errno
import os
import re
import zlib
from collections.abc import Iterator
from typing import Any

import jax

from electra_jax import gcs
from electra_jax.cli import UserError, one_line

# What a missing, cut or altered file raises: of the system, and of those who parse it (json, zlib, zarr's metadata, TensorStore).
_NUMBERS = frozenset((errno.ENOENT, errno.ENOTDIR, errno.EISDIR))
_PARSERS = (FileNotFoundError, NotADirectoryError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, zlib.error)
# TensorStore raises nearly everything as ValueError and begins with a status. These tell of the machine, whatever the bytes are.
_OF_THE_MOMENT = re.compile(
    r"\b(RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|CANCELLED|ABORTED|PERMISSION_DENIED|UNAUTHENTICATED)\b|bad_alloc"
)


class Damaged(Exception):
    """The step cannot be used; the message says why, in a few words."""


@contextlib.contextmanager
def seen(path: Any) -> Iterator[None]:
    """Around a read of the step at `path`, a folder or a gs:// URL.

    Raises Damaged for what the bytes alone can be the cause of. Everything else (permission, want of memory, threads or open files,
    a store that cannot be reached) says nothing about them, and is a UserError.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError:
        raise  # of the devices or of another process: multihost.py reads it
    except Exception as error:
        if gcs.is_remote(path) and (trouble := gcs.trouble(error)):
            raise UserError(f"cannot read {path}: {trouble}; then run the same command again") from error
        if not _is_of_the_bytes(error):
            words = "out of memory" if isinstance(_root(error), MemoryError) else _in_short(error)
            raise UserError(
                f"cannot read {path} ({words}), which says nothing of its files: mend this and run the same command again"
            ) from error
        raise Damaged(f"cannot be read: {_in_short(error)}") from error


def _is_of_the_bytes(error: BaseException) -> bool:
    """Whether a parser failed at the root of it, and nothing in the chain tells of the machine. Orbax wraps what it meets in its own."""
    if any(isinstance(link, MemoryError) or _OF_THE_MOMENT.search(str(link)) for link in _with_contexts(error)):
        return False
    number = error_number(error)
    return number in _NUMBERS if number is not None else isinstance(_root(error), _PARSERS)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _with_contexts(error: BaseException) -> Iterator[BaseException]:
    """The same, and what was being handled where nothing is said of a cause."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _root(error: BaseException) -> BaseException:
    *_, root = _chain(error)
    return root


def _in_short(error: BaseException) -> str:
    number, root = error_number(error), _root(error)
    if number is not None and number not in _NUMBERS:
        return os.strerror(number)
    words = f"{type(root).__name__}: {one_line(root)}"
    return words if len(words) <= 100 else words[:97] + "..."


def error_number(error: BaseException) -> int | None:
    """The system's error number behind an exception: an OSError in its chain, or one that tensorstore put into words."""
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno is not None:
            return link.errno
        for number in errno.errorcode:
            if os.strerror(number) in str(link):
                return number
    return None

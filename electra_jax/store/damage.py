"""When a step of a checkpoint counts as damaged: when it cannot be read for a reason that its bytes may be the cause of.

Beside these, checkpoints.py calls a step damaged whose metadata differ from their SHA-256, and one whose arrays have other checksums.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any

import jax

from electra_jax import gcs
from electra_jax.cli import UserError, one_line

# What stops a read although the bytes may be well.
_OF_THE_MOMENT = frozenset(
    (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN)
)


class Damaged(Exception):
    """The step cannot be used; the message says why, in a few words."""


@contextlib.contextmanager
def seen(path: Any) -> Iterator[None]:
    """Around a read of the step at `path`, a folder or a gs:// URL.

    Raises Damaged for whatever the files may be the cause of, and UserError for what a person mends elsewhere: permission, open files,
    a store that cannot be reached. Want of memory passes.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # the machine's fault, not the file's
    except Exception as error:
        if gcs.is_remote(path) and (trouble := gcs.trouble(error)):
            raise UserError(f"cannot read {path}: {trouble}; then run the same command again") from error
        number = error_number(error)
        if number in _OF_THE_MOMENT:
            raise UserError(f"cannot read {path} ({os.strerror(number)}): mend this and run the same command again") from error
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        words = f"{type(root).__name__}: {one_line(root)}"
        raise Damaged(f"cannot be read: {words if len(words) <= 100 else words[:97] + '...'}") from error


def error_number(error: BaseException | None) -> int | None:
    """The system's error number behind an exception: an OSError in its chain, or one that tensorstore put into words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        for number in errno.errorcode:
            if os.strerror(number) in str(error):
                return number
        error = error.__cause__
    return None

"""Ctrl-C while a command starts: one line and the exit code 42, as later.

Python raises KeyboardInterrupt between any two of its instructions. Within an import, and most of a start is imports, it leaves modules
half made, prints their traces, and has crashed extension modules in their first lines. Imports nothing that takes time, so that a
command can call `catch` before anything else.
"""

import os
import signal
import sys

from electra_jax import exit_codes

_begun = False


def catch(sigterm: bool = False) -> None:
    """From here on. Where SIGINT is ignored, as of a shell's background command, it stays so.

    sigterm: SIGTERM means the same. A training run hears it by itself (watch/stopping.py), and so do jax's processes that are one run.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _handle)
    if sigterm:
        signal.signal(signal.SIGTERM, _handle)


def begun() -> None:
    """The command is within `cli.run`, which says what a KeyboardInterrupt means; imports alone are still ended at once."""
    global _begun
    _begun = True


def _handle(number: int, frame) -> None:
    where = frame
    while _begun and where is not None and not where.f_code.co_filename.startswith("<frozen importlib"):
        where = where.f_back
    if where is None and _begun:
        raise KeyboardInterrupt
    os.write(2, f"{os.path.basename(sys.argv[0])}: interrupted: run the same command again\n".encode())
    os._exit(exit_codes.AGAIN)

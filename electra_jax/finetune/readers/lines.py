"""The lines of a text file with their numbers; bytes that are no text are refused."""

from collections.abc import Iterator
from typing import BinaryIO

from electra_jax.cli import UserError

MAX_LINE_BYTES = 64 << 20


def decode(data: bytes, where: str) -> str:
    """The text. UserError unless it is UTF-8, because a label or an offset from damaged text could be wrong without notice."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: byte {error.start + 1} is {data[error.start]:#04x}, which is no UTF-8: save the file as UTF-8") from None


def lines(stream: BinaryIO, path: str) -> Iterator[tuple[int, str]]:
    """Yields (number from 1, the line with its end). Only \\n or \\r\\n ends a line: a text may contain the other line separators of
    Unicode."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise UserError(f"{path}:{number} is longer than {MAX_LINE_BYTES >> 20} MiB: is it a table with a row in each line?")
        yield number, decode(line, f"{path}:{number}")

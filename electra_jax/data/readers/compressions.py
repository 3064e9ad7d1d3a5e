"""Decompressing while reading: a dict from a file's last ending to the stream that its text comes through."""

import gzip
import io
import lzma
from typing import BinaryIO


def _zstandard(file: BinaryIO) -> BinaryIO:
    import pyarrow  # the package zstandard takes a file that is cut short for a whole one

    return pyarrow.CompressedInputStream(file, "zstd")


COMPRESSIONS = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".xz": lzma.LZMAFile,
    ".zst": _zstandard,
}


def decompress(file: BinaryIO, compression: str) -> io.BufferedReader:
    """The file's content, buffered; `compression` is "" or one of COMPRESSIONS."""
    return io.BufferedReader(COMPRESSIONS[compression](file) if compression else file, 1 << 18)

"""The files in an archive, one after another as they lie, without unpacking it to disk: a dict from an ending to its members."""

import io
import os
import tarfile
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

from electra_jax.cli import UserError
from electra_jax.data.readers.compressions import decompress


def members(kind: str, file: BinaryIO, compression: str, path: str) -> Iterator[tuple[str, BinaryIO]]:
    """(name, stream) of each file in the archive, without the hidden ones. A stream can be read until the next is asked for."""
    for name, stream in ARCHIVES[kind](file, compression, path):
        name = os.path.normpath(name)
        if not any(part.startswith(".") for part in name.split("/")):
            yield name, stream


class _Tail(io.RawIOBase):
    """A stream that remembers its last bytes."""

    def __init__(self, stream: BinaryIO):
        self._stream, self.last = stream, b""

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.last = (self.last + data)[-512:]
        return data


def _tar_members(file: BinaryIO, compression: str, path: str) -> Iterator[tuple[str, BinaryIO]]:
    stream = _Tail(decompress(file, compression))
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # tarfile would keep the header of every member in memory
            if member.isfile():
                yield member.name, archive.extractfile(member)
        if stream.last.strip(b"\0"):  # tarfile takes any end of the file for the end of the archive
            raise tarfile.ReadError("its end mark is missing")
        # A compressed stream has its checksum at its end, and decompressing compares it only when it gets there.
        while stream.read(1 << 20):
            pass


def _zip_members(file: BinaryIO, compression: str, path: str) -> Iterator[tuple[str, BinaryIO]]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            try:
                stream = archive.open(member)
            except (NotImplementedError, RuntimeError) as error:  # RuntimeError: it is encrypted
                raise UserError(f"{path}: {error}: unpack it and name the folder") from None
            with stream:
                yield member.filename, stream


ARCHIVES = {".zip": _zip_members, ".tar": _tar_members}  # only a .tar may be compressed as a whole

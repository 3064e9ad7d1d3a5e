"""Finding, opening and decompressing the files of a corpus. Everything streams."""

import contextlib
import errno
import glob
import gzip
import io
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from electra_jax.cli import UserError

FORMATS = ".txt or .jsonl (also .gz, .xz, .zst), .parquet, and .zip, .tar, .tar.gz, .tar.xz or .tar.zst of these"
ARCHIVES = (".tar", ".zip")


def find(item: str, leave_out: str | None = None) -> Iterator[tuple[str, str]]:
    """(path relative to the input, path) of what an input names: a file, a folder's files, a glob's. Sorted, none twice.

    Hidden files and folders are passed over, and so is the folder `leave_out`. Folders that are links are followed, each once.
    """
    if item.startswith("tfds:"):
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
    """`leave_out`, unless the input lies in it: that is read, and preparation then refuses an output that is not empty."""
    return None if _within(root, leave_out) else leave_out


def is_special(path: str) -> bool:
    """A pipe, socket or device: reading one may never end."""
    return os.path.exists(path) and not os.path.isfile(path)


def _walk(folder: str, relative_to: str, leave_out: str | None) -> list[tuple[str, str]]:
    paths, visited = [], {os.path.realpath(leave_out)} if leave_out else set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:  # a link upwards, or to be left out
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [os.path.join(parent, name) for name in files if not name.startswith(".")]
    return sorted((_relative(path, relative_to), path) for path in paths)


def size_of(path: str) -> int:
    with reading(path):
        return os.path.getsize(path)


def kind_of(path: str) -> tuple[str, str] | None:
    """(.txt | .jsonl | .parquet | .tar | .zip, compression) by the name's end; None if it is none of these."""
    stem, kind = os.path.splitext(path.lower())
    compression = ""
    if kind in (".tgz", ".txz"):
        return ".tar", {".tgz": ".gz", ".txz": ".xz"}[kind]
    if kind in (".gz", ".xz", ".zst"):
        compression, kind = kind, os.path.splitext(stem)[1]
    if kind in (".txt", ".jsonl", ".tar") or (kind in (".parquet", ".zip") and not compression):
        return kind, compression
    return None


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """What decompressors and the system say about a file, as one line that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile) as error:
        code = getattr(error, "errno", None)
        if code == errno.ENOSPC:
            raise
        if code is not None:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        raise UserError(f"{path} is damaged or cut short ({error}): make or download it again") from None


def decompress(file: BinaryIO, compression: str) -> io.BufferedReader:
    if compression == ".gz":
        file = gzip.GzipFile(fileobj=file)
    elif compression == ".xz":
        file = lzma.LZMAFile(file)
    elif compression == ".zst":
        import pyarrow  # zstandard's reader takes a file that is cut short for a whole one

        file = pyarrow.CompressedInputStream(file, "zstd")
    return io.BufferedReader(file, 1 << 18)


class _Tail(io.RawIOBase):
    """A stream that remembers its last bytes."""

    def __init__(self, stream: BinaryIO):
        self._stream, self.last = stream, b""

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.last = (self.last + data)[-512:]
        return data


def archive_members(kind: str, file: BinaryIO, compression: str, path: str) -> Iterator[tuple[str, BinaryIO]]:
    """(name, stream) of each file in the archive, hidden ones left out; a stream is good until the next is asked for."""
    members = _tar_members(file, compression) if kind == ".tar" else _zip_members(file, path)
    for name, stream in members:
        name = os.path.normpath(name)
        if not any(part.startswith(".") for part in name.split("/")):
            yield name, stream


def _tar_members(file: BinaryIO, compression: str) -> Iterator[tuple[str, BinaryIO]]:
    stream = _Tail(decompress(file, compression))
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # else it keeps every header
            if member.isfile():
                yield member.name, archive.extractfile(member)
        if stream.last.strip(b"\0"):  # tarfile takes any end of the file for the end of the archive
            raise tarfile.ReadError("its end mark is missing")
        while stream.read(1 << 20):  # the compressed stream's own checksum stands at its end
            pass


def _zip_members(file: BinaryIO, path: str) -> Iterator[tuple[str, BinaryIO]]:
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

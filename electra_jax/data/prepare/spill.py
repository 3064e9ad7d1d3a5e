"""The files that preparation keeps between its stages: byte strings under integer keys, each with a checksum.

A file appears whole or not at all, so a file that exists is finished work. Several sections may have one key; they come back in order.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from electra_jax.cli import UserError
from electra_jax.files import whole_file

_FOOTER = struct.Struct("<8sQI")  # magic, number of sections, CRC-32 of the index
_MAGIC = b"EJSPILL1"


def write(path: Path, sections: Iterable[tuple[int, Sequence[np.ndarray]]]) -> None:
    """Writes the (key, arrays) one after another as they come; the arrays' bytes are joined."""
    index = []
    with whole_file(path) as temporary:
        with open(temporary, "wb") as file:
            for key, arrays in sections:
                start, crc = file.tell(), 0
                for array in arrays:
                    data = array.tobytes()
                    crc = zlib.crc32(data, crc)
                    file.write(data)
                index.append((key, start, file.tell() - start, crc))
            data = np.array(index, "<i8").reshape(-1, 4).tobytes()
            file.write(data)
            file.write(_FOOTER.pack(_MAGIC, len(index), zlib.crc32(data)))


def read(path: Path, key: int) -> Iterator[bytes]:
    """The sections of this key. UserError if the file is damaged."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        try:
            file.seek(size - _FOOTER.size)
            magic, count, crc = _FOOTER.unpack(file.read(_FOOTER.size))
            file.seek(size - _FOOTER.size - 32 * count)
            data = file.read(32 * count)
        except (ValueError, OSError, struct.error):
            raise _damaged(path) from None
        if magic != _MAGIC or zlib.crc32(data) != crc:
            raise _damaged(path)
        index = np.frombuffer(data, "<i8").reshape(-1, 4)
        for _, start, length, crc in index[index[:, 0] == key].tolist():
            file.seek(start)
            data = file.read(length)
            if zlib.crc32(data) != crc:
                raise _damaged(path)
            yield data


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}, unfinished work, is damaged: delete the folder that is to hold the rows and run the same command again")

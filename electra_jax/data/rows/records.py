"""Rows on disk: ArrayRecord shards of 256 rows a record, and a manifest. What a row means, layouts.py says.

    data/
      manifest.json                        written last: a folder without it is not finished
      train-00000-of-00004.array_record    heldout-00000-of-00001.array_record
      token_counts.npy                     int64 [V]: how often each id stands in the training rows, [PAD] and the like too
      tokenizer/

A record is a header and `rows x length` little-endian uint16 (vocabularies up to 65,536) or uint32. The header holds the
record's place, its shape, the CRC-32 of the whole shard's rows, and a CRC-32 of itself and the record's rows. So a flipped bit, a
record in a wrong place and a shard of another preparation are all found on reading. Records are not compressed, which makes reading
several times as fast (docs/speed.md).
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import struct
import threading
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from electra_jax import limits
from electra_jax.cli import UserError
from electra_jax.data.rows.layouts import check_layout
from electra_jax.files import read_ordinary, whole_file, write_whole

FORMAT = 1
ROWS_PER_RECORD = 256
MANIFEST = "manifest.json"
TOKEN_COUNTS = "token_counts.npy"

_HEADER = struct.Struct("<4s6I")  # magic, CRC-32 of the shard's rows, record, rows, length, bytes a token, CRC-32
_MAGIC = b"EJR1"
_OPEN_SHARDS = 128  # readers kept open
_LIBRARY_THREADS = 64  # of array_record 0.8


def row_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 65_536 else "<u4")


def write_shard(path: Path, tokens_NxL: np.ndarray) -> dict:
    """Writes the rows, uint16 or uint32, as a whole or not at all; returns the shard's entry in the manifest.

    Raises OSError, with ENOSPC when the disk is full.
    """
    count, length = tokens_NxL.shape
    rows = np.ascontiguousarray(tokens_NxL, tokens_NxL.dtype.newbyteorder("<"))
    shard_crc = zlib.crc32(rows)
    with whole_file(path) as temporary:
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        try:
            for number, start in enumerate(range(0, count, ROWS_PER_RECORD)):
                part = rows[start : start + ROWS_PER_RECORD]
                fields = _HEADER.pack(_MAGIC, shard_crc, number, len(part), length, part.itemsize, 0)[:-4]
                payload = part.tobytes()
                crc = zlib.crc32(payload, zlib.crc32(fields))
                writer.write(fields + struct.pack("<I", crc) + payload)
            writer.close()
        except RuntimeError as error:
            with contextlib.suppress(RuntimeError):
                writer.close()
            for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOENT, errno.EACCES, errno.EROFS):
                if os.strerror(code) in str(error):
                    raise OSError(code, os.strerror(code), str(path)) from error
            raise OSError(f"{path}: {error}") from error
        size = temporary.stat().st_size
    return {"file": path.name, "rows": count, "bytes": size, "crc32": shard_crc}


def save_manifest(directory: Path, manifest: dict) -> None:
    """The mark that a folder is finished."""
    manifest = {key: value for key, value in manifest.items() if key != "sha256"}
    manifest["sha256"] = _digest(manifest)
    write_whole(Path(directory) / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def load_manifest(directory) -> dict:
    """The manifest of a prepared folder. UserError if it is absent, damaged, or of another format or layout."""
    path = Path(directory) / MANIFEST
    try:
        content = read_ordinary(path)
    except FileNotFoundError:
        if not Path(directory).is_dir():
            raise UserError(f"{directory}: no such folder: name one that launch/prepare.py wrote") from None
        raise unfinished(directory) from None
    except NotADirectoryError:
        raise UserError(f"{directory} is a file: run launch/prepare.py on it, and name the folder that it wrote") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return parse_manifest(content, path)


def summary(manifest: dict) -> dict:
    """Of a manifest what tells a person which text, rows and tokenizer they were: all but the list of files."""
    counts = {name: {k: v for k, v in split.items() if k != "shards"} for name, split in manifest["splits"].items()}
    return {name: manifest[name] for name in ("sha256", "length", "packing", "tokenizer", "options", "corpus")} | {"splits": counts}


def unfinished(directory) -> UserError:
    return UserError(f"{directory} holds no prepared rows (no {MANIFEST}): run launch/prepare.py, or its same command again if it stopped")


def parse_manifest(content: bytes, path) -> dict:
    """The manifest from its file's bytes; `path` is what messages call it. UserError as in load_manifest."""
    try:
        manifest = json.loads(content)
        right = manifest["sha256"] == _digest({key: value for key, value in manifest.items() if key != "sha256"})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        right = False
    if not right:
        raise damaged(path, "its checksum is wrong")
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path} has format {manifest.get('format')}, this version of electra_jax reads {FORMAT}: prepare the data again")
    check_layout(manifest, path)
    return manifest


def load_token_counts(directory) -> np.ndarray:
    """int64 [V]: how often each id stands in the training rows, special ids included. UserError if the file is damaged."""
    manifest, path = load_manifest(directory), Path(directory) / TOKEN_COUNTS
    try:
        if zlib.crc32(read_ordinary(path)) == manifest["token_counts_crc32"]:
            return np.load(path)
    except FileNotFoundError:
        raise damaged(path, "it is missing") from None
    raise damaged(path, "its checksum is wrong")


class Split:
    """The rows of one split, "train" or "heldout", by chunk: a chunk is a record. Safe to share between threads.

    Opening compares the files' sizes with the manifest's; a chunk's checksum is compared whenever it is read.
    """

    def __init__(self, directory, split: str):
        """UserError if the folder is not finished, or a shard is missing or has another size."""
        self.directory, self.split = Path(directory), split
        self.manifest = load_manifest(directory)
        self.length: int = self.manifest["length"]
        self.dtype = np.dtype(self.manifest["dtype"]).newbyteorder("<")
        self._shards = self.manifest["splits"][split]["shards"]
        for shard in self._shards:
            path = self.directory / shard["file"]
            try:
                size = path.stat().st_size
            except OSError as error:
                raise damaged(path, error.strerror) from None
            if size != shard["bytes"]:
                raise damaged(path, f"it has {size:,} bytes, not {shard['bytes']:,}")
        rows = np.array([shard["rows"] for shard in self._shards], np.int64)
        records = -(-rows // ROWS_PER_RECORD)
        self.num_rows = int(rows.sum())
        self.chunk_rows = np.full(records.sum(), ROWS_PER_RECORD, np.int64)  # rows of each record, shard after shard
        ends = np.cumsum(records)
        filled = records > 0
        self.chunk_rows[ends[filled] - 1] -= (records * ROWS_PER_RECORD - rows)[filled]
        self._first_chunk = ends - records
        self._readers: OrderedDict[int, ArrayRecordReader] = OrderedDict()
        self._lock = threading.Lock()

    def read_chunk(self, chunk: int) -> np.ndarray:
        """Its rows [n, L], uint16 or uint32, read-only. UserError, naming the file, if they are not what was written."""
        number = int(np.searchsorted(self._first_chunk, chunk, side="right")) - 1
        record, shard = int(chunk - self._first_chunk[number]), self._shards[number]
        path = self.directory / shard["file"]
        try:
            data = self._reader(number, path).read([record])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            raise damaged(path, str(error).split(";")[0]) from None
        rows = int(self.chunk_rows[chunk])
        fields = _HEADER.pack(_MAGIC, shard["crc32"], record, rows, self.length, self.dtype.itemsize, 0)[:-4]
        if len(data) != _HEADER.size + rows * self.length * self.dtype.itemsize or data[: len(fields)] != fields:
            raise damaged(path, f"record {record} is not the one that was written there")
        crc = zlib.crc32(memoryview(data)[_HEADER.size :], zlib.crc32(fields))
        if struct.pack("<I", crc) != data[len(fields) : _HEADER.size]:
            raise damaged(path, f"the checksum of record {record} is wrong")
        return np.frombuffer(data, self.dtype, offset=_HEADER.size).reshape(rows, self.length)

    def _reader(self, number: int, path: Path) -> ArrayRecordReader:
        with self._lock:
            reader = self._readers.pop(number, None)
            if reader is None:
                _require_threads()
                reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
                records = -(-self._shards[number]["rows"] // ROWS_PER_RECORD)
                if reader.num_records() != records:
                    raise RuntimeError(f"it holds {reader.num_records()} records, not {records}")
            self._readers[number] = reader
            if len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
            return reader


@functools.cache
def _require_threads() -> None:
    """ArrayRecord would wait for ever for those that the system refuses. It starts them at its first file, whatever its options."""
    limits.require_threads(_LIBRARY_THREADS)


def damaged(path: str | os.PathLike, why: str) -> UserError:
    mend = f"copy it again, or prepare the data again: delete {os.path.dirname(path)} and run the same command of launch/prepare.py"
    return UserError(f"{path} is damaged ({why}): {mend}")


def _digest(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()

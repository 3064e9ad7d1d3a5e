"""Rows on disk: ArrayRecord shards of 256 rows a record, and the manifest that says what they are.

A row is its tokens. No tokenizer of ours gives a special id for text, so [CLS], [SEP] and [PAD] are structure, and segments,
positions and types follow from the tokens (`expand`).
"""

import hashlib
import json
import os
import pathlib
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from array_record.python import array_record_module

from electra_jax.cli import UserError

FORMAT = 1
ROWS_PER_RECORD = 256
MANIFEST = "manifest.json"
_HEADER = struct.Struct("<4sIIII")  # magic, record number, rows, length, crc32 of the payload
_MAGIC = b"EJR1"


def row_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2") if vocab_size <= 65_536 else np.dtype("<u4")


def expand(tokens_NxL: np.ndarray, cls_id: int, sep_id: int, pad_id: int) -> dict[str, np.ndarray]:
    """Tokens -> tokens, segments, positions, types, int32 [N, L] each, of packed and of two-segment rows alike.

    Each [CLS] begins a segment (1, 2, ...; 0 on padding) with positions from 0; types are 1 behind a segment's first [SEP].
    """
    tokens_NxL = tokens_NxL.astype(np.int32, copy=False)
    real_NxL, starts_NxL, ends_NxL = tokens_NxL != pad_id, tokens_NxL == cls_id, tokens_NxL == sep_id
    index_L = np.arange(tokens_NxL.shape[1], dtype=np.int32)
    start_NxL = np.maximum.accumulate(np.where(starts_NxL, index_L, 0), axis=1)
    ended_NxL = np.cumsum(ends_NxL, axis=1, dtype=np.int32) - ends_NxL  # [SEP]s before each place
    types_NxL = ended_NxL > np.take_along_axis(ended_NxL, start_NxL, axis=1)
    return {
        "tokens": tokens_NxL,
        "segments": np.cumsum(starts_NxL, axis=1, dtype=np.int32) * real_NxL,
        "positions": (index_L - start_NxL) * real_NxL,
        "types": (types_NxL & real_NxL).astype(np.int32),
    }


def write_shard(path: pathlib.Path, tokens_NxL: np.ndarray) -> dict[str, Any]:
    """Writes rows as one shard, atomically; returns its line in the manifest."""
    temporary = path.with_name(path.name + ".tmp")
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    for number, start in enumerate(range(0, len(tokens_NxL), ROWS_PER_RECORD)):
        chunk = np.ascontiguousarray(tokens_NxL[start : start + ROWS_PER_RECORD])
        payload = chunk.tobytes()
        writer.write(_HEADER.pack(_MAGIC, number, *chunk.shape, zlib.crc32(payload)) + payload)
    writer.close()
    crc32 = 0
    with open(temporary, "rb") as file:
        while block := file.read(1 << 22):
            crc32 = zlib.crc32(block, crc32)
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return {"file": path.name, "rows": len(tokens_NxL), "bytes": path.stat().st_size, "crc32": crc32}


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the sha256 of all else in it."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return {**rest, "sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def load_manifest(directory: str | os.PathLike) -> dict[str, Any]:
    """Raises UserError where the folder is no finished preparation, or the manifest was changed."""
    path = pathlib.Path(directory) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        what = "is not there" if not path.parent.exists() else "holds no finished preparation (no manifest.json)"
        raise UserError(f"{directory} {what}: run launch/prepare.py --output={directory} to its end") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): prepare the data again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is not of format {FORMAT}, which this version reads: prepare the data again")
    if seal(manifest) != manifest:
        raise UserError(f"{path} was changed after preparation (its sha256 does not fit): prepare the data again")
    return manifest


class Split:
    """The rows of one split ("train", "heldout") of a prepared folder, by chunk (a record of up to 256 rows)."""

    def __init__(self, directory: str | os.PathLike, split: str):
        self.directory = pathlib.Path(directory)
        self.manifest = load_manifest(directory)
        self.length: int = self.manifest["length"]
        self._shards = self.manifest["splits"][split]["shards"]
        self._dtype = np.dtype(self.manifest["dtype"])
        self._readers: dict[int, Any] = {}
        per_shard = [-(-shard["rows"] // ROWS_PER_RECORD) for shard in self._shards]
        self._place = [(s, r) for s, records in enumerate(per_shard) for r in range(records)]
        self.chunk_rows = np.array(
            [min(ROWS_PER_RECORD, self._shards[s]["rows"] - r * ROWS_PER_RECORD) for s, r in self._place], np.int64
        )
        self.num_rows = int(self.chunk_rows.sum())
        for shard in self._shards:
            path = self.directory / shard["file"]
            size = path.stat().st_size if path.exists() else None
            if size != shard["bytes"]:
                raise UserError(_damaged(path, "is missing" if size is None else f"has {size} bytes instead of {shard['bytes']}"))

    def __getstate__(self):
        return {**self.__dict__, "_readers": {}}

    def read_chunk(self, chunk: int) -> np.ndarray:
        """tokens [rows, L] of one record. Raises UserError where it is damaged; never gives wrong rows."""
        shard, number = self._place[chunk]
        path = self.directory / self._shards[shard]["file"]
        try:
            if shard not in self._readers:
                self._readers[shard] = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
            record = self._readers[shard].read([number])[0]
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise UserError(_damaged(path, f"cannot be read ({' '.join(str(error).split())[:120]})")) from error
        payload = memoryview(record)[_HEADER.size :]
        expected = (_MAGIC, number, int(self.chunk_rows[chunk]), self.length, zlib.crc32(payload))
        if len(record) < _HEADER.size or _HEADER.unpack_from(record) != expected:
            raise UserError(_damaged(path, f"is damaged in record {number} (its checksum does not fit)"))
        return np.frombuffer(payload, self._dtype).reshape(-1, self.length)


def _damaged(path: pathlib.Path, what: str) -> str:
    return f"{path} {what}: copy it anew from where it was made, or prepare the data again"

"""Shards and manifests: what is written is read, and no damage passes for rows."""

import json
import random

import numpy as np
import pytest

from electra_jax.cli import UserError
from electra_jax.data import records

CLS, SEP, PAD = 2, 3, 0


@pytest.fixture
def folder(tmp_path):
    """Two shards of 300 and 40 rows of 16."""
    r = np.random.default_rng(0)
    rows = r.integers(4, 60_000, (340, 16)).astype("<u2")
    shards = [records.write_shard(tmp_path / f"train-{i}.array_record", part) for i, part in enumerate((rows[:300], rows[300:]))]
    manifest = {"format": 1, "length": 16, "dtype": "<u2", "splits": {"train": {"rows": 340, "shards": shards}}}
    (tmp_path / "manifest.json").write_text(json.dumps(records.seal(manifest)))
    return tmp_path, rows


def read_all(folder):
    split = records.Split(folder, "train")
    return np.concatenate([split.read_chunk(i) for i in range(len(split.chunk_rows))])


def test_what_is_written_is_read(folder):
    path, rows = folder
    split = records.Split(path, "train")
    assert split.chunk_rows.tolist() == [256, 44, 40] and split.num_rows == 340
    np.testing.assert_array_equal(read_all(path), rows)
    assert records.row_dtype(65_536) == np.uint16 and records.row_dtype(65_537) == np.uint32


def test_a_flipped_byte_or_a_cut_is_named_and_never_read_as_rows(folder):
    path, rows = folder
    shard = path / "train-0.array_record"
    whole, draws, caught = shard.read_bytes(), random.Random(0), 0
    for _ in range(300):
        at = draws.randrange(len(whole)) if draws.random() < 0.5 else draws.randrange(12_000)
        damaged = bytearray(whole)
        damaged[at] ^= 1 << draws.randrange(8)
        shard.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(read_all(path), rows)
        except UserError as error:
            assert str(shard) in str(error) and "prepare the data again" in str(error) and "\n" not in str(error)
            caught += 1
    assert caught > 100  # most of those within the rows
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:size])
        with pytest.raises(UserError, match=f"has {size} bytes instead of {len(whole)}"):
            read_all(path)
    shard.write_bytes(whole[:-100] + bytes(100))
    try:
        np.testing.assert_array_equal(read_all(path), rows)
    except UserError:
        pass
    shard.unlink()
    with pytest.raises(UserError, match="is missing"):
        read_all(path)


def test_manifest_is_sealed(folder, tmp_path):
    path, _ = folder
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "length": 32}))
    with pytest.raises(UserError, match="was changed"):
        records.load_manifest(path)
    (path / "manifest.json").write_text(json.dumps(records.seal({**manifest, "format": 2})))
    with pytest.raises(UserError, match="format 1"):
        records.load_manifest(path)
    (path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        records.load_manifest(path)
    with pytest.raises(UserError, match="no finished preparation"):
        records.load_manifest(tmp_path.parent)
    with pytest.raises(UserError, match="is not there"):
        records.load_manifest(tmp_path / "nowhere")


def by_hand(row):
    """One row, token by token."""
    segments, positions, types, segment, position, seen = [], [], [], 0, 0, 0
    for token in row:
        if token == PAD:
            out = (0, 0, 0)
        else:
            if token == CLS:
                segment, position, seen = segment + 1, 0, 0
            out = (segment, position, int(seen > 0))
            position += 1
            seen += token == SEP
        for column, value in zip((segments, positions, types), out, strict=True):
            column.append(value)
    return segments, positions, types


def test_expand_recovers_both_layouts():
    rows = np.array(
        [
            [CLS, 9, 9, SEP, 8, SEP, 0, 0, 0],  # the paper's two segments
            [CLS, 9, SEP, 0, 0, 0, 0, 0, 0],  # one
            [CLS, 9, SEP, CLS, 8, 8, SEP, 0, 0],  # packed
            [CLS, 9, SEP, CLS, 8, SEP, CLS, 7, SEP],  # full
        ]
    )
    out = records.expand(rows, CLS, SEP, PAD)
    for b, row in enumerate(rows):
        for name, expected in zip(("segments", "positions", "types"), by_hand(row), strict=True):
            assert out[name][b].tolist() == expected
    assert all(value.dtype == np.int32 for value in out.values())

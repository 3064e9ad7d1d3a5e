"""Shards and manifest: what is read is what was written, or one line that names the file."""

import json
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

from electra_jax.cli import UserError
from electra_jax.data.rows import layouts, records

CLS, SEP, PAD, LENGTH = 2, 3, 0, 16


def make_folder(folder, rows_of_shards, *, vocab_size=30_000, length=LENGTH):
    """The rows of a prepared folder, without a corpus; returns them all."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    shards, rows = [], []
    for number, count in enumerate(rows_of_shards):
        tokens = rng.integers(0, vocab_size, (count, length)).astype(records.row_dtype(vocab_size))
        shards.append(records.write_shard(folder / f"train-{number:05d}-of-{len(rows_of_shards):05d}.array_record", tokens))
        rows.append(tokens)
    split = {"rows": sum(rows_of_shards), "shards": shards}
    dtype = records.row_dtype(vocab_size).name
    records.save_manifest(folder, {"format": 1, "length": length, "dtype": dtype, "splits": {"train": split}})
    return np.concatenate(rows)


def read_all(folder):
    split = records.Split(folder, "train")
    return np.concatenate([split.read_chunk(chunk) for chunk in range(len(split.chunk_rows))])


def by_the_rule(row):
    """The rule of a row's structure, token by token."""
    segments, positions, types = [], [], []
    segment = start = kind = 0
    for index, token in enumerate(row):
        if token == CLS:
            segment, start, kind = segment + 1, index, 0
        real = token != PAD
        segments.append(segment * real)
        positions.append((index - start) * real)
        types.append(kind * real)
        if token == SEP:
            kind = 1
    return segments, positions, types


def test_expand_of_rows_written_out():
    rows = np.array([[CLS, 9, 9, SEP, 8, SEP, 0, 0], [CLS, 9, SEP, 0, 0, 0, 0, 0], [CLS, 9, SEP, CLS, 8, SEP, CLS, SEP]])
    found = layouts.expand(rows, CLS, SEP, PAD)
    assert found["segments"].tolist() == [[1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 2, 2, 2, 3, 3]]
    assert found["positions"].tolist() == [[0, 1, 2, 3, 4, 5, 0, 0], [0, 1, 2, 0, 0, 0, 0, 0], [0, 1, 2, 0, 1, 2, 0, 1]]
    assert found["types"].tolist() == [[0, 0, 0, 0, 1, 1, 0, 0], [0] * 8, [0] * 8]


def test_expand_follows_the_rule_in_both_layouts():
    rng = random.Random(0)
    rows = []
    for _ in range(300):
        row = []
        while len(row) < LENGTH and (not row or rng.random() < 0.7):  # dense, with a second part now and then
            for part in range(1 + (rng.random() < 0.4)):
                row += ([] if part else [CLS]) + [rng.randrange(4, 90) for _ in range(rng.randrange(0, 9))] + [SEP]
        rows.append((row + [PAD] * LENGTH)[:LENGTH])
    rows.append([CLS, SEP] + [PAD] * (LENGTH - 2))
    rows.append([PAD] * LENGTH)
    tokens = np.array(rows, np.uint16)
    found = layouts.expand(tokens, CLS, SEP, PAD)
    expected = [np.array(column) for column in zip(*map(by_the_rule, rows), strict=True)]
    assert all(array.dtype == np.int32 and array.shape == tokens.shape for array in found.values())
    np.testing.assert_array_equal(found["tokens"], tokens)
    for name, column in zip(("segments", "positions", "types"), expected, strict=True):
        np.testing.assert_array_equal(found[name], column, err_msg=name)


@pytest.mark.parametrize("vocab_size, dtype", [(65_536, np.uint16), (65_537, np.uint32)])
def test_rows_come_back_over_shards_short_records_and_empty_shards(tmp_path, vocab_size, dtype):
    counts = [256 * 2, 0, 256 + 1, 17]
    rows = make_folder(tmp_path, counts, vocab_size=vocab_size)
    split = records.Split(tmp_path, "train")
    assert (split.num_rows, split.length) == (sum(counts), LENGTH)
    assert split.chunk_rows.tolist() == [256, 256, 256, 1, 17]
    found = read_all(tmp_path)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, rows)


def test_a_shard_is_the_same_bytes_every_time(tmp_path):
    make_folder(tmp_path / "a", [300])
    code = f"import sys; sys.path[:0] = {sys.path!r}\nimport pathlib\nfrom tests.data.test_records import make_folder\n"
    subprocess.run([sys.executable, "-c", code + f"make_folder(pathlib.Path({str(tmp_path / 'b')!r}), [300])"], check=True)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def outcome(folder, rows, path):
    """ "rows" or "refused"; fails on wrong rows, and on any exception but a UserError that names the file in one line."""
    try:
        found = read_all(folder)
    except UserError as error:
        assert path.name in str(error) and "\n" not in str(error) and "again" in str(error)
        return "refused"
    np.testing.assert_array_equal(found, rows)
    return "rows"


def test_damaged_shard_is_refused_or_read_exactly(tmp_path):
    """Flipped bits, changed bytes and cuts, at random places: also where only padding stands, which changes nothing."""
    rows = make_folder(tmp_path, [256 * 3 + 40])
    path = next(tmp_path.glob("*.array_record"))
    good = path.read_bytes()
    used = [index for index, byte in enumerate(good) if byte]
    rng, outcomes = random.Random(0), []
    for trial in range(1_500):
        data = bytearray(good)
        index = rng.choice(used) if trial % 2 else rng.randrange(len(data))
        data[index] ^= 1 << rng.randrange(8) if trial % 3 else rng.randrange(1, 256)
        path.write_bytes(data)
        outcomes.append(outcome(tmp_path, rows, path))
    assert outcomes.count("refused") > 700 and outcomes.count("rows") > 0
    for _ in range(150):
        path.write_bytes(good[: rng.randrange(len(good))])
        assert outcome(tmp_path, rows, path) == "refused"
    path.unlink()
    assert outcome(tmp_path, rows, path) == "refused"
    path.write_bytes(good)
    assert outcome(tmp_path, rows, path) == "rows"


def test_our_own_checksum_finds_what_the_format_does_not(tmp_path, monkeypatch):
    """A record with a flipped bit, written as such: ArrayRecord's own hash is right, ours is not."""
    rows = make_folder(tmp_path, [300])
    path = next(tmp_path.glob("*.array_record"))
    real, written = records.ArrayRecordWriter, []

    class Flipping:
        def __init__(self, *args):
            self.inner = real(*args)

        def write(self, data):
            data = bytearray(data)
            if not written:
                data[-5] ^= 4
            written.append(self.inner.write(bytes(data)))

        def close(self):
            self.inner.close()

    monkeypatch.setattr(records, "ArrayRecordWriter", Flipping)
    records.write_shard(path, rows)
    with pytest.raises(UserError, match="checksum of record 0 is wrong"):
        read_all(tmp_path)


def test_a_shard_of_another_preparation_is_refused(tmp_path):
    """Same name, same size, sound in itself: half an old folder and half a new one is no folder."""
    rows = make_folder(tmp_path, [300])
    path = next(tmp_path.glob("*.array_record"))
    records.write_shard(path, rows[::-1])
    with pytest.raises(UserError, match="record 0 is not the one"):
        read_all(tmp_path)


def test_manifest_every_flipped_byte_is_found(tmp_path):
    make_folder(tmp_path, [300])
    path = tmp_path / "manifest.json"
    good, before = path.read_bytes(), records.load_manifest(tmp_path)
    rng = random.Random(0)
    for index in range(len(good)):
        data = bytearray(good)
        data[index] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            assert records.load_manifest(tmp_path) == before  # white space between tokens may change
        except UserError as error:
            assert "manifest.json" in str(error)
    for end in range(0, len(good) - 2, 7):
        path.write_bytes(good[:end])
        with pytest.raises(UserError, match="damaged"):
            records.load_manifest(tmp_path)


def test_manifest_absent_changed_or_of_another_format(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        records.load_manifest(tmp_path / "nowhere")
    with pytest.raises(UserError, match="launch/prepare.py"):
        records.load_manifest(tmp_path)
    records.save_manifest(tmp_path, {"format": 2})
    with pytest.raises(UserError, match="format 2"):
        records.load_manifest(tmp_path)
    path = tmp_path / "manifest.json"
    for changed in ({**json.loads(path.read_text()), "length": 32}, [1]):
        path.write_text(json.dumps(changed))
        with pytest.raises(UserError, match="damaged"):
            records.load_manifest(tmp_path)


def test_token_counts_are_checked(tmp_path):
    counts = np.arange(600)
    np.save(tmp_path / "token_counts.npy", counts)
    good = (tmp_path / "token_counts.npy").read_bytes()
    records.save_manifest(tmp_path, {"format": 1, "token_counts_crc32": records.zlib.crc32(good)})
    np.testing.assert_array_equal(records.load_token_counts(tmp_path), counts)
    for damaged in (good[:-1], good[:1000] + bytes([good[1000] ^ 1]) + good[1001:]):
        (tmp_path / "token_counts.npy").write_bytes(damaged)
        with pytest.raises(UserError, match="token_counts.npy is damaged"):
            records.load_token_counts(tmp_path)
    (tmp_path / "token_counts.npy").unlink()
    with pytest.raises(UserError, match="it is missing"):
        records.load_token_counts(tmp_path)


def test_full_disk_leaves_nothing_behind(tmp_path):
    room = tmp_path / "room"
    room.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(room)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        with pytest.raises(OSError, match="No space left"):
            records.write_shard(room / "train-00000-of-00001.array_record", np.zeros((70_000, 16), np.uint16))
        assert list(room.iterdir()) == []
    finally:
        subprocess.run(["umount", str(room)], check=True)

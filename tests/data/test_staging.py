"""Prepared folders in a bucket: what is staged is what was prepared, once a machine, and every mistake has its line."""

import json
import pathlib
import shutil
import threading

import numpy as np
import pytest

from electra_jax import gcs as gcs_lib
from electra_jax.cli import UserError
from electra_jax.data.rows import order, records, staging


@pytest.fixture
def url(gcs, bucket, rows) -> str:
    gcs.add(rows, bucket, "data/topics")
    gcs.downloads.clear()
    return f"gs://{bucket}/data/topics"


def contents(folder) -> dict[str, bytes]:
    files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_local_folder_is_itself(tmp_path):
    assert staging.local_folder("data/mine", tmp_path) == "data/mine"


def test_what_is_staged_is_what_was_prepared(gcs, url, rows, tmp_path, capsys):
    staged = staging.local_folder(url + "/", tmp_path)
    assert contents(staged) == contents(rows)
    assert pathlib.Path(staged).parent == tmp_path / "data"
    assert f"staging {url}: 0.6 MB to {staged}" in capsys.readouterr().err
    indices = np.arange(500)
    mixture = order.Stream([staged, str(rows)], [0.3, 0.7], seed=1)
    assert (mixture.rows(indices) == order.Stream([str(rows), str(rows)], [0.3, 0.7], seed=1).rows(indices)).all()


def test_only_what_is_not_there_is_copied(gcs, url, rows, tmp_path, capsys):
    staged = pathlib.Path(staging.local_folder(url, tmp_path))
    shard = next(name for name in contents(rows) if name.startswith("train-"))
    capsys.readouterr()
    for break_it, copied in (
        (lambda: None, []),
        ((staged / shard).unlink, [shard]),
        (lambda: (staged / shard).write_bytes(b"cut"), [shard]),
        (lambda: shutil.rmtree(staged / "tokenizer"), [name for name in contents(rows) if name.startswith("tokenizer/")]),
        (lambda: (staged / records.MANIFEST).unlink(), []),
        (lambda: (staged / ".train.123.tmp").write_bytes(b"of a process that died"), []),
    ):
        break_it()
        gcs.downloads.clear()
        assert staging.local_folder(url, tmp_path) == str(staged)
        assert sorted({*gcs.downloads} - {"data/topics/" + records.MANIFEST}) == sorted(f"data/topics/{name}" for name in copied)
        assert not list(staged.rglob("*.tmp"))
        assert bool(copied) == ("staging" in capsys.readouterr().err)
        assert contents(staged) == contents(rows)


def test_a_death_while_staging_leaves_no_finished_folder(url, rows, tmp_path, monkeypatch):
    download, done = gcs_lib.download, []

    def dies(source, path, about):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(path)
        download(source, path, about)

    monkeypatch.setattr(gcs_lib, "download", dies)
    monkeypatch.setattr(staging, "_TOGETHER", 1)
    with pytest.raises(KeyboardInterrupt):
        staging.local_folder(url, tmp_path)
    (half,) = (tmp_path / "data").iterdir()
    assert len(contents(half)) == 3 and not (half / records.MANIFEST).exists()
    monkeypatch.undo()
    assert contents(staging.local_folder(url, tmp_path)) == contents(rows)


def test_one_copies_while_the_others_wait(gcs, url, rows, tmp_path):
    staged: list[str] = []
    threads = [threading.Thread(target=lambda: staged.append(staging.local_folder(url, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(staged) == 4 and len(set(staged)) == 1 and contents(staged[0]) == contents(rows)
    files = [name for name in gcs.downloads if not name.endswith(records.MANIFEST)]
    assert len(files) == len(set(files))


def test_data_prepared_again_is_staged_beside(gcs, bucket, url, tmp_path):
    before = staging.local_folder(url, tmp_path)
    manifest = json.loads(gcs.buckets[bucket]["data/topics/" + records.MANIFEST])
    records.save_manifest(tmp_path, {**manifest, "note": "prepared again"})
    gcs.buckets[bucket]["data/topics/" + records.MANIFEST] = (tmp_path / records.MANIFEST).read_bytes()
    after = staging.local_folder(url, tmp_path)
    assert after != before and pathlib.Path(before).exists()


def test_other_bytes_than_lie_there_are_noticed(bucket, gcs, tmp_path):
    gcs.buckets[bucket]["x/a"] = b"right"
    about = gcs_lib.listing(f"gs://{bucket}/x")["a"]
    gcs.buckets[bucket]["x/a"] = b"wrong"
    with pytest.raises(UserError, match=r"^gs://.*/x/a: other bytes arrived than lie there: run the same command again$"):
        gcs_lib.download(f"gs://{bucket}/x/a", tmp_path / "a", about)
    assert list(tmp_path.iterdir()) == []


def test_mistakes_each_have_a_line(gcs, bucket, url, rows, tmp_path, monkeypatch):
    def refused(path: str, match: str) -> None:
        with pytest.raises(UserError, match=match) as error:
            staging.local_folder(path, tmp_path)
        assert "\n" not in str(error.value)

    refused("gs://no-such-bucket/data", "^gs://no-such-bucket/data: there is no bucket no-such-bucket: create it")
    refused(f"gs://{bucket}/nowhere", "nowhere: no such folder: name one that launch/prepare.py wrote")
    refused(f"gs://{bucket}", "name a bucket and a folder in it")
    refused("s3://bucket/data", "s3:// is not known here")
    objects = gcs.buckets[bucket]
    shard = next(name for name in objects if "/train-" in name)
    good = dict(objects)
    for change, match in (
        (lambda: objects.pop(shard), r"/train-\S+ is damaged \(it is missing\)"),
        (lambda: objects.update({shard: b"short"}), r"/train-\S+ is damaged \(it has 5 bytes, not [\d,]+\)"),
        (lambda: objects.update({"data/topics/manifest.json": b"{}"}), r"manifest.json is damaged \(its checksum is wrong\)"),
        (lambda: objects.pop("data/topics/manifest.json"), r"holds no prepared rows \(no manifest.json\)"),
    ):
        change()
        refused(url, f"^{url}.*{match}" if "holds no" not in match else f"^{url} {match}")
        objects.update(good)
    gcs.forbidden = f"/b/{bucket}"
    refused(url, f"^{url}: access is refused .*: log in")
    gcs.forbidden = None
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    refused(url, r"needs \d+ MB and \S+ has 0 MB left: free some space, or choose another --scratch")

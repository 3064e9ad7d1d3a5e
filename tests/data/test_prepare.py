"""Preparation: the right rows, the same bytes however it came to its end, and nobody's folder harmed."""

import dataclasses
import errno
import glob
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import unicodedata
from collections import Counter

import numpy as np
import pytest

from configs.pretrain import PUBLISHED, TINY
from electra_jax.cli import UserError
from electra_jax.data import prepare, tokenizers
from electra_jax.data.prepare import PrepareOptions, advice, claim, packing, stages, vocabulary
from electra_jax.data.prepare.job import Job
from electra_jax.data.prepare.split import default_share, document_hash, is_heldout, text_hash
from electra_jax.data.readers import corpus
from electra_jax.data.rows import hashing, order, records
from tests.data import kill_prepare
from tests.data.kill_prepare import tree

LENGTH = 32


@pytest.fixture(scope="session")
def pieces(real_text, tmp_path_factory):
    """A small WordPiece vocabulary, trained once."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.train_wordpiece([real_text.read_text()], 600).save(folder)
    return str(folder)


@pytest.fixture(scope="session")
def text(real_text, tmp_path_factory):
    """120 KB of it."""
    path = tmp_path_factory.mktemp("some") / "some.txt"
    path.write_text("\n\n".join(real_text.read_text().split("\n\n")[:40]))
    return path


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(prepare, "CHUNK_CHARS", 20_000)


def make(output, *inputs, workers=1, **options):
    options = {"length": LENGTH, "heldout": 0.1, "packing": "dense", **options}
    return prepare.prepare(PrepareOptions(tuple(map(str, inputs)), str(output), **options), workers=workers, progress=False)


def read_rows(folder, split):
    s = records.Split(folder, split)
    return np.concatenate([s.read_chunk(chunk) for chunk in range(len(s.chunk_rows))])


def expected_rows(inputs, tokenizer, options: PrepareOptions, buckets):
    """Per split, the rows of every (bucket, number) in order: in one pass, in memory, from the packers alone."""
    tokenizer = tokenizers.load(tokenizer)
    documents: dict[tuple[int, int], list] = {(s, b): [] for s in range(2) for b in range(buckets[s])}
    for document in corpus.open_corpus([str(i) for i in inputs]).documents():
        digest = text_hash(document.text.encode())
        split = int(int.from_bytes(digest[:8], "big") / 2**64 < options.heldout)
        lines = tokenizer.encode_batch(document.text.split("\n"))
        documents[split, int.from_bytes(digest[8:], "big") % buckets[split]].append(lines)
    rows = ([], [])
    for (split, bucket), of_bucket in documents.items():
        packer = {"pairs": packing.PairPacker, "dense": packing.DensePacker}[options.packing](
            options.length,
            tokenizer.cls_id,
            tokenizer.sep_id,
            tokenizer.pad_id,
            random.Random(hashing.hash64(options.seed, split, bucket, 0)),
        )
        for lines in of_bucket:
            rows[split].extend(packer.add(lines))
        rows[split].extend(packer.flush())
    return [np.stack(r) for r in rows]


@pytest.mark.parametrize("kind", ["dense", "pairs"])
def test_every_row_stands_once_and_is_what_the_packers_give(kind, real_text, pieces, tmp_path):
    manifest = make(tmp_path / "o", real_text, tokenizer=pieces, packing=kind, parts=2)
    options = PrepareOptions((), "", length=LENGTH, heldout=0.1, packing=kind)
    expected = expected_rows([real_text], pieces, options, manifest["options"]["buckets"])
    for split, name in enumerate(("train", "heldout")):
        rows = read_rows(tmp_path / "o", name)
        assert Counter(map(bytes, rows)) == Counter(map(bytes, expected[split].astype(np.uint16)))
        told = manifest["splits"][name]
        assert (told["rows"], told["tokens"]) == (len(rows), (rows != 0).sum())
    assert (tmp_path / "o" / "token_counts.npy").exists() and not (tmp_path / "o" / ".work").exists()
    counts = records.load_token_counts(tmp_path / "o")
    np.testing.assert_array_equal(counts, np.bincount(read_rows(tmp_path / "o", "train").ravel(), minlength=600))
    assert tokenizers.load(tmp_path / "o" / "tokenizer").sha256 == manifest["tokenizer"]["sha256"]


def test_a_part_is_shuffled_whole(real_text, pieces, tmp_path):
    """No trace of the text's order in a shard, nor of a row's neighbours in its record."""
    manifest = make(tmp_path / "o", real_text, tokenizer=pieces, parts=2, buckets=1, packing="pairs")
    options = PrepareOptions((), "", length=LENGTH, heldout=0.1, packing="pairs")
    expected = expected_rows([real_text], pieces, options, manifest["options"]["buckets"])[0].astype(np.uint16)
    place = {bytes(row): number for number, row in enumerate(expected)}
    sizes = [shard["rows"] for shard in manifest["splits"]["train"]["shards"]]
    assert abs(sizes[0] - sizes[1]) < 5 * sum(sizes) ** 0.5
    start = 0
    for size in sizes:
        places = np.array([place[bytes(row)] for row in read_rows(tmp_path / "o", "train")[start : start + size]])
        assert abs(np.corrcoef(places, np.arange(size))[0, 1]) < 5 / size**0.5
        near = np.abs(np.diff(places)) <= 10  # by chance: 20 of all the places
        assert near.mean() < 3 * 20 / len(expected)
        start += size


def test_copies_of_a_document_fall_on_one_side():
    text = "Une idée\nfraîche\n\nà lire"
    copies = [text, text.replace("\n", "\r\n"), f"  {text}\n \t", unicodedata.normalize("NFD", text), text.replace("\n", "\r")]
    copies += [text.replace("\n", " \t\n"), text.replace("\n", " \r\n"), f"\ufeff{text}"]
    assert len(set(copies)) == 8 and len({document_hash(copy) for copy in copies}) == 1
    assert document_hash(text + "!") != document_hash(text)


def test_equal_documents_share_a_split_and_the_split_is_a_fraction(tmp_path):
    job = Job("", "", 600, 2, 3, 0, 32, "dense", heldout=0.1, seed=0, chunk_chars=1, buckets=(4, 2))
    groups = Counter(job.group(text_hash(f"document {n}".encode())) for n in range(20_000))
    assert set(groups) == set(range(6))
    assert abs((groups[4] + groups[5]) / 20_000 - 0.1) < 0.01
    assert max(groups[n] for n in range(4)) < 1.1 * min(groups[n] for n in range(4))


def folder_of_files(text, folder, files):
    documents = text.read_text().split("\n\n")
    folder.mkdir()
    for number in range(files):
        (folder / f"{number:03d}.txt").write_text("\n\n".join(documents[number::files]))
    return folder


def test_same_bytes_whatever_the_workers_chunks_and_blocks(real_text, pieces, tmp_path, monkeypatch):
    """One large file, which the parent reads, and many, which the workers read."""
    many = folder_of_files(real_text, tmp_path / "many", 30)
    for name, item in (("one", real_text), ("many", many)):
        options = {"tokenizer": pieces, "packing": "pairs", "parts": 3}
        make(tmp_path / f"{name}1", item, **options)
        make(tmp_path / f"{name}2", item, **options, workers=2)
        monkeypatch.setattr(prepare, "CHUNK_CHARS", 150_000)
        monkeypatch.setattr(stages, "BLOCK_BYTES", 4 * LENGTH * 100)
        make(tmp_path / f"{name}3", item, **options)
        monkeypatch.undo()
        monkeypatch.setattr(prepare, "CHUNK_CHARS", 20_000)
        first = tree(tmp_path / f"{name}1")
        assert len(first) == 10 and tree(tmp_path / f"{name}2") == first and tree(tmp_path / f"{name}3") == first


def test_same_bytes_with_two_workers_on_books(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "CHUNK_CHARS", 1 << 18)
    bert = shared_data / "vocab" / "bert_uncased_vocab.txt"
    for workers in (1, 2):
        make(tmp_path / str(workers), shared_data / "corpora" / "wikitext-2.valid.txt", tokenizer=str(bert), workers=workers, length=128)
    assert tree(tmp_path / "1") == tree(tmp_path / "2")


def test_a_long_line_has_the_tokens_of_its_words(pieces, monkeypatch):
    tokenizer = tokenizers.load(pieces)
    line = " ".join(random.Random(0).choices(["electra", "é", "a,b", "x" * 90, " ", "\x0b."], k=4_000))
    [whole] = tokenizer.encode_batch([line])
    monkeypatch.setattr(stages, "LINE_CHARS", 500)
    found = stages._encode(tokenizer, ["short", line])
    np.testing.assert_array_equal(found[1], whole)
    assert max(map(len, stages._pieces(line))) <= 501 and len(list(stages._pieces("y" * 1_200))) == 3


def test_vocabulary_is_trained_on_the_training_documents_once(text, tmp_path, monkeypatch):
    seen = []
    real = tokenizers.train
    monkeypatch.setattr(tokenizers, "train", lambda name, texts, *a, **k: real(name, seen.append(list(texts)) or seen[-1], *a, **k))
    monkeypatch.setattr(stages, "pack_bucket", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    options = dict(tokenizer="wordpiece", vocab_size=500)
    with pytest.raises(UserError, match="free some space"):
        make(tmp_path / "o", text, **options)
    monkeypatch.undo()
    make(tmp_path / "o", text, **options)
    make(tmp_path / "p", text, **options)
    assert tree(tmp_path / "o") == tree(tmp_path / "p")
    held = [not is_heldout(text_hash(t.encode()), 0.1) for t in seen[0]]
    assert len(seen) == 1 and all(held) and 20 < len(held) < 40


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_from_text_to_rows(kind, text, tmp_path):
    manifest = make(tmp_path / "o", text, tokenizer=kind, vocab_size=300)
    stream = order.Stream([str(tmp_path / "o")], None, 0)
    tokenizer = tokenizers.load(tmp_path / "o" / "tokenizer")
    assert tokenizer.kind == manifest["tokenizer"]["kind"] == "sentencepiece"
    words = tokenizer.decode(stream.rows(np.arange(3))[0])
    assert sum(word in text.read_text() for word in words.split()) > 3


# Ends before the end.


def test_killed_at_any_moment_the_same_bytes(real_text, tmp_path):
    """The vocabulary's training included."""

    def arguments(name):
        return [f"--input={real_text}", f"--output={tmp_path / name}", "--vocab_size=600", "--length=32", "--heldout=0.1", "--workers=2"]

    kill_prepare.finish(*arguments("whole"))
    killed = tmp_path / "killed"
    moments = [kill_prepare.after(0.4), kill_prepare.files(killed, 3), kill_prepare.files(killed, 9)]
    assert kill_prepare.kill_and_finish(arguments("killed"), moments) == 3
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


@pytest.mark.slow
def test_twenty_kills(real_text, tmp_path):
    many, moments, hit = folder_of_files(real_text, tmp_path / "many", 40), random.Random(0), 0
    for number, item in enumerate((real_text, many)):
        whole, killed = tmp_path / f"whole{number}", tmp_path / f"killed{number}"
        more = [f"--input={item}", "--vocab_size=600", "--length=32", "--heldout=0.1", "--workers=2"]
        secs = kill_prepare.finish(*more, f"--output={whole}")
        for _ in range(10):  # one kill in a half, one later, then the end
            spans = (0.2, 0.6), (0.3, 0.9)
            kills = [kill_prepare.after(moments.uniform(*span) * secs) for span in spans]
            hit += kill_prepare.kill_and_finish([*more, f"--output={killed}"], kills)
            assert tree(killed) == tree(whole)
            shutil.rmtree(killed)
    assert hit >= 20


def test_what_a_killed_writer_left_goes(text, pieces, tmp_path, monkeypatch):
    make(tmp_path / "whole", text, tokenizer=pieces)
    monkeypatch.setattr(stages, "write_part", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(UserError):
        make(tmp_path / "o", text, tokenizer=pieces)
    monkeypatch.undo()
    for name in (".train-00000-of-00001.array_record.1.tmp", ".manifest.json.1.tmp", "tokenizer/.vocab.txt.1.tmp", ".work/rows/.x.1.tmp"):
        (tmp_path / "o" / name).write_bytes(b"torn")
    make(tmp_path / "o", text, tokenizer=pieces)
    assert tree(tmp_path / "o") == tree(tmp_path / "whole")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / f".{claim.MARK}.1.tmp").write_bytes(b"torn")  # killed in its very first write
    make(tmp_path / "p", text, tokenizer=pieces)
    assert tree(tmp_path / "p") == tree(tmp_path / "whole")


class Stopped(BaseException):
    pass


def test_stopped_before_each_file_the_same_bytes(text, pieces, tmp_path, monkeypatch):
    """A death, or a full disk, just before each file that preparation writes would have appeared, one after the other."""
    make(tmp_path / "whole", text, tokenizer=pieces)
    expected, real, left, stops = tree(tmp_path / "whole"), os.replace, [0], 0

    def replace(*arguments):
        left[0] -= 1
        if left[0] == 0:
            raise Stopped if stops % 2 else OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    for number in range(1, 100):
        left[0] = number
        monkeypatch.setattr(os, "replace", replace)
        try:
            make(tmp_path / "o", text, tokenizer=pieces)
            break
        except Stopped:
            stops += 1
        except UserError as error:
            assert "free some space, then run the same command again" in str(error)
            stops += 1
        assert not list((tmp_path / "o").rglob("*.tmp"))
        monkeypatch.setattr(os, "replace", real)
        make(tmp_path / "o", text, tokenizer=pieces)
        assert tree(tmp_path / "o") == expected, number
        shutil.rmtree(tmp_path / "o")
    assert stops > 20


def test_a_disk_that_is_really_full(text, pieces, tmp_path):
    """It grows a little after each refusal, so that the work stops at many places."""
    make(tmp_path / "whole", text, tokenizer=pieces)
    room = tmp_path / "room"
    room.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(room)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        refused = 0
        for kib in range(64, 4096, 64):
            subprocess.run(["mount", "-o", f"remount,size={kib}k", str(room)], check=True)
            try:
                make(room / "o", text, tokenizer=pieces)
                break
            except UserError as error:
                assert "the disk is full: free some space" in str(error)
                assert not list(room.rglob("*.tmp"))
                refused += 1
        assert refused > 4
        assert tree(room / "o") == tree(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(room)], check=True)


def test_workers_end_with_their_parent(real_text, pieces, tmp_path):
    arguments = [*[f"--input={real_text}"] * 12, f"--output={tmp_path / 'o'}", f"--tokenizer={pieces}", "--length=32", "--workers=2"]
    process = subprocess.Popen(kill_prepare.command(*arguments), stderr=subprocess.DEVNULL, start_new_session=True)
    while not glob.glob(f"{tmp_path}/o/.work/*/*.spill"):
        assert process.poll() is None
    process.kill()
    process.wait()
    for _ in range(50):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        threading.Event().wait(0.1)
    pytest.fail("processes of a killed preparation live on")


def test_damaged_work_is_found(text, pieces, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "pack_bucket", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(UserError):
        make(tmp_path / "o", text, tokenizer=pieces)
    monkeypatch.undo()
    path = sorted((tmp_path / "o" / ".work" / "chunks").glob("*.spill"))[2]
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{path.name}.*is damaged.*delete"):
        make(tmp_path / "o", text, tokenizer=pieces)


# Whose folder it is.


def test_the_same_command_again_says_so_and_another_is_refused(text, pieces, tmp_path, capsys):
    output = tmp_path / "o"
    manifest = make(output, text, tokenizer=pieces)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in output.rglob("*") if path.is_file()}
    options = PrepareOptions((str(text),), str(output), tokenizer=pieces, length=LENGTH, heldout=0.1, packing="dense")
    assert prepare.prepare(options) == manifest
    assert "nothing to do" in capsys.readouterr().err
    for change in ({"length": 64}, {"seed": 1}, {"packing": "pairs"}, {"heldout": 0.2}, {"buckets": 5}):
        [(name, value)] = change.items()
        with pytest.raises(UserError, match=rf"finished rows made with other options \({name}: .* -> {value!r}\).*another --output"):
            prepare.prepare(dataclasses.replace(options, **change))
    other = tmp_path / "other.txt"
    shutil.copy(text, other)
    with pytest.raises(UserError, match="inputs"):
        prepare.prepare(dataclasses.replace(options, inputs=(str(other),)))
    os.utime(text, ns=(1, 1))
    with pytest.raises(UserError, match="the input has changed since"):
        prepare.prepare(options)
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in output.rglob("*") if path.is_file()}


def test_unfinished_work_of_other_options_is_refused_and_of_old_input_begun_anew(text, pieces, tmp_path, monkeypatch, capsys):
    source, output = tmp_path / "text.txt", tmp_path / "o"
    shutil.copy(text, source)
    monkeypatch.setattr(stages, "write_part", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(UserError, match="free some space"):
        make(output, source, tokenizer=pieces)
    monkeypatch.undo()
    monkeypatch.setattr(prepare, "CHUNK_CHARS", 20_000)
    before = tree(output)
    with pytest.raises(UserError, match=r"unfinished work made with other options \(length: 32 -> 64\)"):
        make(output, source, tokenizer=pieces, length=64)
    assert tree(output) == before
    source.write_text(source.read_text()[:60_000])
    make(output, source, tokenizer=pieces)
    assert "starting over" in capsys.readouterr().err
    make(tmp_path / "p", source, tokenizer=pieces)
    assert tree(output) == tree(tmp_path / "p")


def test_two_at_once_in_one_folder(text, pieces, tmp_path):
    options = PrepareOptions((str(text),), str(tmp_path / "o"), tokenizer=pieces)
    with claim.claimed(tmp_path / "o", options, corpus.open_corpus([str(text)]), tokenizers.load(pieces)):
        with pytest.raises(UserError, match="another process"):
            prepare.prepare(options)


def test_a_failed_command_can_be_mended_in_the_same_folder(tmp_path):
    source = tmp_path / "few.txt"
    source.write_text("one text of words here\n\nsome other words\n\nand a third of them")
    with pytest.raises(
        UserError, match=r"held-out split is empty: --heldout=0.001 of 3 document\(s\) \(blank lines part.*try --heldout=0.5,"
    ):
        make(tmp_path / "o", source, vocab_size=60, heldout=0.001)
    with pytest.raises(UserError, match="training split is empty.*blank lines between chapters.*leave --documents=file out"):
        make(tmp_path / "o", source, heldout=0.999, documents="file", tokenizer=_saved(tmp_path))
    make(tmp_path / "o", source, vocab_size=60, heldout=0.5, seed=3)
    assert json.loads((tmp_path / "o" / "manifest.json").read_text())["options"]["heldout"] == 0.5


def test_after_a_reading_error_the_mended_command_goes_on(pieces, tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"body": f"some words of document {n}"}) + "\n" for n in range(50)))
    with pytest.raises(UserError, match="no field 'text', but 'body'"):
        make(tmp_path / "o", source, tokenizer=pieces)
    with pytest.raises(UserError, match="training split is empty: --heldout=0.9999 of 50 .*: try --heldout=0.49995, or give more text$"):
        make(tmp_path / "o", source, vocab_size=600, text_field="body", heldout=0.9999)
    make(tmp_path / "o", source, tokenizer=pieces, text_field="body")


@pytest.mark.parametrize("pattern", ["train-*", "heldout-*", "token_counts.npy", "manifest.json"])
def test_damage_of_finished_rows_is_told(pattern, text, pieces, tmp_path):
    make(tmp_path / "o", text, tokenizer=pieces)
    path = next((tmp_path / "o").glob(pattern))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=rf"{path.name} is damaged \(.*delete {tmp_path / 'o'} and run the same command"):
        make(tmp_path / "o", text, tokenizer=pieces)


@pytest.mark.parametrize("mark", ["[]", "{}", "7", "{"])
def test_a_damaged_mark_is_told(mark, text, pieces, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / claim.MARK).write_text(mark)
    with pytest.raises(UserError, match=f"{claim.MARK} is damaged"):
        make(tmp_path / "o", text, tokenizer=pieces)


def test_the_output_may_lie_in_the_input_and_the_rows_know_no_place(text, pieces, tmp_path):
    for folder in ("books", "elsewhere"):
        (tmp_path / folder).mkdir()
        shutil.copy(text, tmp_path / folder)
    options = dict(tokenizer=pieces, vocab_size=600)
    manifest = make(tmp_path / "books" / "out", tmp_path / "books", **options)
    assert make(tmp_path / "books" / "out", tmp_path / "books", **options) == manifest
    assert make(tmp_path / "o", tmp_path / "elsewhere", **options) == manifest
    with pytest.raises(UserError, match="is not empty and holds something else"):
        make(tmp_path / "books", tmp_path / "books", **options)


def test_summary(text, pieces, tmp_path):
    manifest = make(tmp_path / "o", text, tokenizer=pieces)
    manifest = json.loads(json.dumps(manifest))
    lines = prepare.summary(manifest, "my rows")
    assert "--config=configs/pretrain.py:tiny" in lines[-1] and "--config.data.path='my rows' --config.train.steps=" in lines[-1]
    assert not any("note" in line for line in lines) and any("--packing=pairs" in line for line in lines)
    manifest["splits"]["train"] |= {"documents": 116_520, "tokens": 14_658_216}  # of 77 novels
    (note,) = (line for line in prepare.summary(manifest, "o") if "note" in line)
    assert note.endswith("put them between chapters only")  # of one file none could be held out
    manifest["corpus"]["sources"] = 200
    (note,) = (line for line in prepare.summary(manifest, "o") if "note" in line)
    assert note.endswith("--documents=file keeps each .txt whole")
    manifest["corpus"]["sources"] = 1
    manifest["splits"]["train"]["documents"] = 10
    manifest["splits"]["train"]["dropped_tokens"] = manifest["splits"]["train"]["tokens"]
    assert any("note: 50% of the training tokens were dropped; --packing=dense" in line for line in prepare.summary(manifest, "o"))


@pytest.mark.parametrize(
    "device, cores, tokens, preset, steps, words",
    [
        ("", 2, 150_000, "tiny", 1_465, "2 CPU cores and 0.1 M tokens; 1,465 steps are 40 epochs, about 5 min"),  # a novel
        ("", 2, 20_000, "tiny", 1_000, "1,000 steps (fewer teach it little) are 204 epochs"),
        ("", 2, 500_000_000, "tiny", 17_578, "17,578 steps (what an hour allows here) are 0.14 epochs, about 60 min"),
        ("GPU", 16, 5_000_000, "tiny", 48_828, "tiny because of GPU and 5.0 M tokens"),
        ("GPU", 16, 100_000_000, "small", 244_140, "small because of GPU"),
        ("TPU", 16, 3 * 10**9, "base", 766_000, "as published"),
    ],
)
def test_what_is_advised_fits_text_and_machine(monkeypatch, device, cores, tokens, preset, steps, words):
    monkeypatch.setattr(advice, "accelerator", lambda: device)
    monkeypatch.setattr(advice, "available_cores", lambda: cores)
    why, command = advice.command(-(-tokens // 128), tokens, 128, "o")
    assert f"pretrain.py:{preset} " in command and command.endswith(f"--config.train.steps={steps}")
    assert words in why


def test_what_is_advised_is_what_the_presets_are():
    """They are no part of the package, so that their rows and steps are written twice."""
    for preset in ("small", "base"):
        rows, steps, _ = advice.PRESETS[preset]
        assert (rows, steps) == (PUBLISHED[preset]["batch_rows"], PUBLISHED[preset]["steps"])
    assert advice.PRESETS["tiny"][0] == TINY["train"].batch_rows and advice.FEWEST_STEPS == TINY["train"].steps


def test_a_vocabulary_follows_from_the_amount_of_text():
    sizes = [vocabulary.default_vocab_size(megabytes * 10**6) for megabytes in (1, 20, 60, 1000)]
    assert sizes == [4_096, 8_192, 16_384, 30_522]


@pytest.mark.parametrize("kind, words", [("wordpiece", "4096 pieces is too small"), ("unigram", "cannot train 4096 pieces")])
def test_a_text_of_many_characters_gets_the_pieces_that_they_need(kind, words, tmp_path):
    """4,096 pieces, which so little text is given, have no room for 6,000 ideographs."""
    rng = random.Random(0)
    documents = ("".join(chr(0x4E00 + rng.randrange(6000)) for _ in range(800)) for _ in range(100))
    (tmp_path / "zh.txt").write_text("\n\n".join(documents))
    manifest = make(tmp_path / "o", tmp_path / "zh.txt", heldout=0.2, tokenizer=kind)
    assert 5_900 < manifest["tokenizer"]["vocab_size"] <= 30_522
    with pytest.raises(UserError, match=words):
        make(tmp_path / "given", tmp_path / "zh.txt", heldout=0.2, tokenizer=kind, vocab_size=4096)


def _saved(folder):
    tokenizers.train_wordpiece(["one text of words here some other"], 60).save(folder / "t")
    return str(folder / "t")


def test_a_killed_worker_is_one_line(real_text, pieces, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "tokenize_chunk", _die)
    with pytest.raises(UserError, match="killed.*lack of memory.*fewer --workers"):
        make(tmp_path / "o", real_text, tokenizer=pieces, workers=2)


def _die(*_):
    os._exit(9)


def test_beam_is_an_extra(text, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "electra_jax.data.prepare.beam", raising=False)
    monkeypatch.delattr("electra_jax.data.prepare.beam", raising=False)
    with pytest.raises(UserError, match=r"--runner=DirectRunner needs Apache Beam: pip install 'electra_jax\[beam\]', or leave"):
        prepare.prepare(PrepareOptions((str(text),), str(tmp_path / "o")), runner="DirectRunner")
    assert not (tmp_path / "o").exists()


def test_preparing_never_imports_jax(text, pieces, tmp_path):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['prepare.py', '--input={text}', '--output={tmp_path / 'o'}', '--tokenizer={pieces}', '--heldout=0.1']\n"
        f"runpy.run_path({str(kill_prepare.ROOT / 'launch' / 'prepare.py')!r}, run_name='__main__')\n"
        "print([name for name in ('jax', 'flax', 'grain', 'tensorflow') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]" and (tmp_path / "o" / "manifest.json").exists()


@pytest.mark.parametrize("line_ends", ["\n", "\r\n"])
def test_a_novel_without_blank_lines_is_cut_and_some_of_it_held_out(line_ends, tmp_path):
    """By default, with all that a person gives: one file."""
    r = random.Random(0)
    lines = [" ".join(r.choice("alpha beta gamma delta epsilon zeta eta theta".split()) for _ in range(12)) for _ in range(9000)]
    novel = tmp_path / "novel.txt"
    novel.write_text(line_ends.join(lines), newline="")
    manifest = prepare.prepare(PrepareOptions((str(novel),), str(tmp_path / "o")), workers=1, progress=False)
    documents = [manifest["splits"][split]["documents"] for split in ("train", "heldout")]
    assert sum(documents) == -(-novel.stat().st_size // (16 << 10)) and 1 <= documents[1] < 0.3 * sum(documents)
    assert manifest["options"]["heldout"] == 0.1
    kept = b"".join(bytes(d.text.encode()) for d in corpus.open_corpus([str(novel)]).documents())
    assert kept.replace(b"\n", b"") == "".join(lines).encode()  # nothing is lost at the cuts
    (whole,) = corpus.open_corpus([str(novel)], documents="blank_lines").documents()
    assert whole.text == "\n".join(lines)


def test_how_much_is_held_out_follows_from_the_amount_of_text():
    assert [default_share(megabytes * 10**6) for megabytes in (0, 1, 5, 10, 20, 1000)] == [0.1, 0.1, 0.04, 0.02, 0.01, 0.01]

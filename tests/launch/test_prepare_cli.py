"""launch/prepare.py as its user runs it: the summary, --help, and everything wrong that can be, in one line."""

import concurrent.futures
import gzip
import lzma
import os
import re
import subprocess

import pytest

from tests.data import kill_prepare


def run(*arguments):
    return subprocess.run(kill_prepare.command(*arguments), capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), "the", "of"]
    path.write_text("\n".join(pieces) + "\n")
    return path


def test_from_text_to_the_next_command(real_text, vocabulary, tmp_path):
    inputs = [f"--input={real_text},{vocabulary}", f"--input={real_text.parent}"]  # commas, and again
    arguments = [*inputs, f"--output={tmp_path / 'o'}", f"--tokenizer={vocabulary}", "--length=64", "--packing=dense", "--heldout=0.1"]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "documents" in done.stdout and "rows of 64" in done.stdout and "% full" in done.stdout and "1 shards" in done.stdout
    next_line = done.stdout.splitlines()[-1]
    assert "python launch/pretrain.py --config=configs/pretrain.py:tiny --workdir=" in next_line
    assert re.search(f"--config.data.path={tmp_path / 'o'} --config.train.steps=[0-9]+$", next_line)
    assert re.search(r"tokenizing: [\d.]+ MB of text, [\d.]+ MB/s", done.stderr) and "\r" not in done.stderr
    again = run(*arguments)
    assert (again.returncode, again.stdout) == (0, done.stdout) and "nothing to do" in again.stderr


def test_what_was_not_text_is_told(vocabulary, tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "good.txt").write_bytes(b"\n\n".join(b"the words of document %d" % n for n in range(100)))
    (folder / "latin.txt").write_bytes(b"caf\xe9 and na\xefve words")
    (folder / "empty.txt").write_bytes(b"")
    done = run(f"--input={folder}", f"--output={tmp_path / 'o'}", f"--tokenizer={vocabulary}", "--heldout=0.3")
    assert done.returncode == 0, done.stderr
    assert "2 bytes in 1 files are not UTF-8" in done.stderr and "latin.txt" in done.stderr
    assert "1 files hold no document: empty.txt" in done.stderr


def test_every_mistake_is_one_line_and_exit_2(real_text, vocabulary, tmp_path):
    no_mask, empty, binary = tmp_path / "no_mask.txt", tmp_path / "empty.txt", tmp_path / "binary.txt"
    no_mask.write_text(vocabulary.read_text().replace("[MASK]\n", ""))
    empty.write_bytes(b"")
    binary.write_bytes(bytes(range(256)) * 10)
    (tmp_path / "hollow").mkdir()
    long, other_field, cut = tmp_path / "long.txt", tmp_path / "other.jsonl.gz", tmp_path / "cut.txt.xz"
    long.write_text("word " * 300_000)
    other_field.write_bytes(gzip.compress(b'{"content": "a document"}\n'))
    cut.write_bytes(lzma.compress(os.urandom(9_000).hex().encode())[:-100])
    file, foreign = tmp_path / "file", tmp_path / "foreign"
    file.write_text("mine")
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    os.symlink(tmp_path / "absent", tmp_path / "dangling")
    os.symlink(tmp_path / "loop", tmp_path / "loop")

    good = {"input": real_text, "output": tmp_path / "new", "tokenizer": vocabulary}
    cases = {
        "no input": ({"input": None}, "no input"),
        "no output": ({"output": None}, "--output"),
        "typo": ({"inptu": 1}, "inptu"),
        "enum": ({"packing": "sparse"}, "pairs"),
        "type": ({"length": "long"}, "length"),
        "length": ({"length": 4}, "rows hold 8 to"),
        "held out": ({"heldout": 1}, "between 0 and 1"),
        "seed": ({"seed": -1}, "0 or more"),
        "workers": ({"workers": -1}, "workers=-1"),
        "absent": ({"input": tmp_path / "nowhere"}, "no such file"),
        "hollow": ({"input": tmp_path / "hollow"}, "holds no file that can be read"),
        "empty": ({"input": empty}, "no document"),
        "binary": ({"input": binary}, "binary.txt is binary"),
        "no mask": ({"tokenizer": no_mask}, "no [MASK]"),
        "no tokenizer": ({"tokenizer": tmp_path / "nowhere.model"}, "nowhere.model"),
        "size": ({"vocab_size": 50}, "leave vocab_size out"),
        "no size": ({"tokenizer": "wordpiece", "vocab_size": 0}, "vocab_size=0: a vocabulary has 8 to"),
        "negative size": ({"tokenizer": "bpe", "vocab_size": -5}, "vocab_size=-5: a vocabulary has 8 to"),
        "alphabet": ({"tokenizer": "wordpiece", "vocab_size": 20}, "too small"),
        "long": ({"input": long, "max_document_mib": 1}, "long.txt: a document is longer than"),
        "field": ({"input": other_field}, "no field 'text', but 'content'"),
        "cut": ({"input": cut}, "cut.txt.xz is damaged or cut short"),
        "file": ({"output": file}, "is a file"),
        "below a file": ({"output": file / "below"}, "cannot be written"),
        "long name": ({"output": tmp_path / ("x" * 300)}, "cannot be written: File name too long: choose another --output"),
        "dangling": ({"output": tmp_path / "dangling"}, "cannot be written: File exists: choose another --output"),
        "loop": ({"output": tmp_path / "loop"}, "cannot be written: "),
        "comma": ({"output": tmp_path / "a,b"}, "choose a name without one"),
        "foreign": ({"output": foreign}, "is not empty and holds something else"),
        "empty split": ({"heldout": 1e-6}, "the held-out split is empty: --heldout=1e-06 of"),
        "tfds": ({"input": "tfds:no_such_dataset_of_ours"}, "no_such_dataset_of_ours"),
    }

    def attempt(item):
        name, (change, message) = item
        flags = {**good, "output": tmp_path / f"new-{name.replace(' ', '-')}", **change}
        return name, message, flags, run(*(f"--{key}={value}" for key, value in flags.items() if value is not None))

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        for name, message, flags, done in pool.map(attempt, cases.items()):
            assert done.returncode == 2, (name, done.stderr)
            lines = [line for line in done.stderr.splitlines() if not re.match(r"(tokenizing|vocabulary|packing): ", line)]
            assert len(lines) == 1 and lines[0].startswith("prepare.py: ") and message in lines[0], (name, done.stderr)
            assert done.stdout == "", name
            if "output" not in cases[name][0]:  # nothing is left in the way of the mended command
                left = {path.name for path in flags["output"].iterdir()} if flags["output"].exists() else set()
                assert left <= {".work", ".prepared_from.json", "tokenizer"}, (name, left)
    assert file.read_text() == "mine" and [p.name for p in foreign.iterdir()] == ["thesis.txt"]


def test_help_reads_well():
    done = run("--help")
    assert done.returncode == 0
    assert done.stdout.count("python launch/prepare.py --input=") == 3
    for flag in "input output tokenizer vocab_size length packing heldout documents text_field seed workers buckets parts".split():
        assert f"--{flag}: " in done.stdout, flag
    assert max(map(len, done.stdout.splitlines())) <= 140

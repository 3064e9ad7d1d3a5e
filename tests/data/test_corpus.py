"""Every format and archive gives the same documents; what cannot be read is one line that names the file."""

import gzip
import io
import json
import lzma
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from electra_jax.cli import UserError
from electra_jax.data.readers.corpus import open_corpus

DOCUMENTS = ["one line", "two\nlines é", "  three\n\twith space inside", "日本語のテキスト"]
PARAGRAPHS = "\n\n".join(DOCUMENTS).encode() + b"\n"
JSONL = "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(DOCUMENTS)).encode()


def parquet(texts=DOCUMENTS, type=None, **options):
    buffer = io.BytesIO()
    table = pyarrow.table({"id": range(len(texts)), "text": pyarrow.array(texts, type)})
    pyarrow.parquet.write_table(table, buffer, row_group_size=3, **options)
    return buffer.getvalue()


def tar(members, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def zst(data):
    return zstandard.compress(data[: len(data) // 2]) + zstandard.compress(data[len(data) // 2 :])  # two frames


COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zst}
FILES = {
    **{f"a.txt{end}": compress(PARAGRAPHS) for end, compress in COMPRESSIONS.items()},
    **{f"a.jsonl{end}": compress(JSONL) for end, compress in COMPRESSIONS.items()},
    "a.parquet": parquet(),
}
MEMBERS = {name: data for name, data in FILES.items() if name in ("a.txt", "a.jsonl.gz", "a.txt.zst", "a.parquet")}


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def read(*inputs, **options):
    corpus = open_corpus([str(item) for item in inputs], **options)
    return list(corpus.documents()), corpus.report


def texts(*inputs, **options):
    return [document.text for document in read(*inputs, **options)[0]]


@pytest.mark.parametrize("name", FILES)
def test_every_format(tmp_path, name):
    write(tmp_path, {name: FILES[name]})
    documents, report = read(tmp_path / name)
    assert [(d.source, d.ordinal, d.text) for d in documents] == [(name, n, text) for n, text in enumerate(DOCUMENTS)]
    assert report.documents == 4 and report.text_bytes == sum(len(text.encode()) for text in DOCUMENTS)
    assert report.lines() == []


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.tar", tar),
        ("a.tar.gz", lambda members: tar(members, "w:gz")),
        ("a.TGZ", lambda members: tar(members, "w:gz")),
        ("a.tar.xz", lambda members: tar(members, "w:xz")),
        ("a.tar.zst", lambda members: zst(tar(members))),
        ("a.zip", zipped),
    ],
)
def test_every_archive(tmp_path, name, make):
    members = {"./b/a.txt": PARAGRAPHS, **MEMBERS, "README": b"no", "in.zip": zipped({}), "._x.txt": b"x", ".git/x.txt": b"x"}
    write(tmp_path, {name: make(members)})
    documents, report = read(tmp_path / name)
    assert [document.text for document in documents] == DOCUMENTS * 5
    assert [document.ordinal for document in documents] == list(range(20))
    assert [document.source for document in documents[::4]] == [f"{name}/b/a.txt", *(f"{name}/{member}" for member in MEMBERS)]
    assert report.ignored_files == 2 and report.names["ignored_files"] == [f"{name}/README", f"{name}/in.zip"]


def test_how_text_is_cut(tmp_path):
    write(tmp_path, {"a.txt": b"\xef\xbb\xbf\r\n \t\r\none\r\n  two  \r\n\xe3\x80\x80\r\n\r\nthree\n\xc2\xa0 \nfour"})
    assert texts(tmp_path / "a.txt") == ["one\n  two  ", "three", "four"]
    assert texts(tmp_path / "a.txt", documents="blank_lines") == ["one\n  two  ", "three", "four"]
    assert texts(tmp_path / "a.txt", documents="file") == [" \t\none\n  two  \n\u3000\n\nthree\n\xa0 \nfour"]
    with pytest.raises(UserError, match="choose auto, blank_lines or file"):
        open_corpus([str(tmp_path)], documents="lines")


def test_jsonl_and_parquet_fields(tmp_path):
    write(tmp_path, {"a.jsonl": b'\xef\xbb\xbf{"body": "one\\ntwo"}\n\n  \n{"body": null, "x": [1]}\n{"body": ""}\n{"body": "three"}'})
    documents, report = read(tmp_path / "a.jsonl", text_field="body")
    assert [document.text for document in documents] == ["one\ntwo", "three"] and report.empty_documents == 2
    for kind in (pyarrow.large_string(), pyarrow.binary(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())):
        write(tmp_path, {"a.parquet": parquet([*DOCUMENTS, None, ""], kind, use_dictionary=False)})
        documents, report = read(tmp_path / "a.parquet")
        assert [document.text for document in documents] == DOCUMENTS and report.empty_documents == 2


def test_bytes_that_are_not_utf8_are_counted_and_named(tmp_path):
    bad_string = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(np.array([0, 4], np.int32)), pyarrow.py_buffer(b"a\xffb\xc3")]
    )
    files = {
        "bad.jsonl": b'{"text": "a\xff\xfeb"}\n{"text": "\\ud800 half a pair"}\n{"text": "good"}\n',
        "bad.parquet": parquet(bad_string),
        "bad.txt": b"caf\xe9 \xe2\x82\n\n\xef\xbf\xbd is right\n\nworse \xf0\x9f\x98\n",
        "good.txt": "é".encode(),
    }
    documents, report = read(write(tmp_path, files))
    found = [document.text for document in documents]
    assert found == [
        "a\ufffd\ufffdb",
        "\ufffd\ufffd\ufffd half a pair",
        "good",
        "a\ufffdb\ufffd",
        "caf\ufffd \ufffd",
        "\ufffd is right",
        "worse \ufffd",
        "é",
    ]
    assert report.invalid_utf8_bytes == (2 + 3) + 2 + (1 + 2 + 3) and report.invalid_utf8_files == 3
    [line] = report.lines()
    assert line.startswith("13 bytes in 3 files are not UTF-8") and "bad.jsonl, bad.parquet, bad.txt" in line
    assert "".join(found).encode()  # no half of a pair is left, which no tokenizer takes


def test_folders_globs_and_names(tmp_path):
    files = {"b.txt": b"b", "a/z.txt": b"az", "a/b/c.txt": b"abc", "a.txt": b"a", "a/note.md": b"m"}
    write(tmp_path / "x", {**files, ".hidden.txt": b"h", ".git/x.txt": b"h"})
    documents, report = read(tmp_path / "x")
    assert [(d.source, d.text) for d in documents] == [("a.txt", "a"), ("a/b/c.txt", "abc"), ("a/z.txt", "az"), ("b.txt", "b")]
    assert report.ignored_files == 1 and "1 files of other kinds were passed over: a/note.md" in report.lines()
    assert [d.source for d in read(tmp_path / "x" / "*.txt")[0]] == ["a.txt", "b.txt"]
    assert [d.source for d in read(tmp_path / "x" / "**" / "*.txt")[0]] == ["a.txt", "a/b/c.txt", "a/z.txt", "b.txt"]
    assert [d.source for d in read(tmp_path / "x" / "**")[0]] == ["a.txt", "a/b/c.txt", "a/z.txt", "b.txt"]
    # The order of the inputs holds, and a name that comes again is told apart.
    documents, _ = read(tmp_path / "x" / "b.txt", tmp_path / "x" / "a*", tmp_path / "x" / "b.txt")
    assert [(d.source, d.text) for d in documents] == [
        ("b.txt", "b"),
        ("a.txt", "a"),
        ("a/b/c.txt", "abc"),
        ("a/z.txt", "az"),
        ("b.txt#2", "b"),
    ]
    os.symlink(tmp_path / "x", tmp_path / "x" / "a" / "loop")
    assert [d.source for d in read(tmp_path / "x")[0]] == ["a.txt", "a/b/c.txt", "a/z.txt", "b.txt"]
    os.rename(tmp_path / "x", tmp_path / "elsewhere")  # names do not depend on where the corpus lies
    assert [d.source for d in read(tmp_path / "elsewhere")[0]][:2] == ["a.txt", "a/b/c.txt"]


def test_sources_are_read_one_by_one_in_any_process(tmp_path):
    write(tmp_path, {**FILES, "empty.txt": b"", "bad.txt": b"\xff", "note.md": b""})
    whole = open_corpus([str(tmp_path)])
    expected = list(whole.documents())
    corpus = pickle.loads(pickle.dumps(open_corpus([str(tmp_path)])))
    assert corpus.num_bytes == sum((tmp_path / source.name).stat().st_size for source in corpus.sources)
    found = {}
    for source in reversed(corpus.sources):  # as another process would: the source alone, and its own report
        part = type(corpus.report)()
        found[source.name] = list(corpus.read(pickle.loads(pickle.dumps(source)), part))
        corpus.report.merge(part)
    assert [document for source in corpus.sources for document in found[source.name]] == expected
    assert {**vars(corpus.report), "names": 0} == {**vars(whole.report), "names": 0}
    assert list(whole.documents()) == expected and whole.report.documents == len(expected)  # counted anew


def cut(data, part=0.6):
    return data[: int(len(data) * part)]


LONG = os.urandom(200_000).hex().encode() + b"\n"
DAMAGED = {
    "a.txt.gz": cut(gzip.compress(LONG, mtime=0)),
    "a.txt.xz": cut(lzma.compress(LONG)),
    "a.txt.zst": cut(zst(LONG)),
    "b.txt.zst": zstandard.compress(LONG)[:-3],  # the end of the last frame
    "a.tar": cut(tar({"a.txt": LONG})),
    "b.tar": tar({"a.txt": b"x" * 512, "b.txt": b"y" * 512})[:1024],  # between two members
    "a.tar.gz": cut(tar({"a.txt": LONG}, "w:gz")),
    "a.tar.xz": tar({"a.txt": LONG}, "w:xz")[:-20],  # the text is whole, the checksum is not
    "a.tar.zst": cut(zst(tar({"a.txt": LONG}))),
    "c.tar.gz": LONG,
    "d.tar.gz": gzip.compress(tar({"a.txt": LONG}) + bytes(1 << 20))[:-6],  # the checksum, far behind the last member
    "a.zip": cut(zipped({"a.txt": LONG})),
    "a.parquet": cut(parquet()),
    "in.tar": tar({"a.parquet": cut(parquet())}),
    "in.zip": zipped({"a.txt.gz": cut(gzip.compress(LONG, mtime=0))}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_named(tmp_path, name):
    write(tmp_path, {name: DAMAGED[name]})
    with pytest.raises(UserError, match="is damaged or cut short .*: make or download it again") as error:
        texts(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_flipped_bit_in_an_archive_is_found(tmp_path):
    for name, data in (
        ("a.zip", zipped({"a.txt": LONG})),
        ("a.txt.gz", gzip.compress(LONG, mtime=0)),
        ("a.tar.xz", tar({"a.txt": LONG}, "w:xz")),
    ):
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 4
        write(tmp_path, {name: bytes(flipped)})
        with pytest.raises(UserError, match=f"{name}.*is damaged"):
            texts(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.txt", b"text\0\1\2", r"a.txt is binary, not text"),
        ("a.txt", "text".encode("utf-16"), r"binary.*convert it to UTF-8"),
        ("a.txt.gz", gzip.compress(b"\0", mtime=0), r"a.txt.gz is binary"),
        ("a.tar", tar({"b.txt": b"\0"}), r"a.tar/b.txt is binary"),
        ("a.txt", b"", r"no document in the input \(1 files hold no document: a.txt\)"),
        ("a.txt", b" \n\n\t\n", r"no document in the input"),
        ("a.jsonl", b"", r"no document in the input"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a.jsonl:2 is not JSON"),
        ("a.jsonl", b'["a"]\n', r"a.jsonl:1 is not a JSON object"),
        ("a.jsonl", b'\n{"text": "a"}\n{"id": 1, "body": "b"}\n', r"a.jsonl:3 has no field 'text', but 'id', 'body'"),
        ("a.jsonl", b'{"text": 5}\n', r"a.jsonl:1: the field 'text' is of type int, not text"),
        ("a.zip", zipped({"b.jsonl": b"{\n"}), r"a.zip/b.jsonl:1 is not JSON"),
        ("a.parquet", parquet([1, 2]), r"a.parquet: the column 'text' holds no text"),
        ("a.parquet", b"", r"a.parquet is damaged"),
        ("a.md", b"text", r"a.md is of no kind that can be read: give .txt or .jsonl"),
        ("folder/a.md", b"text", None),
        ("a.zip", zipped({"b.md": b""}), r"no document in the input \(1 files of other kinds were passed over: a.zip/b.md\)"),
    ],
)
def test_bad_input_is_one_line_that_names_it(tmp_path, name, data, says):
    write(tmp_path, {name: data})
    if says is None:
        with pytest.raises(UserError, match="folder holds no file that can be read"):
            open_corpus([str(tmp_path / "folder")])
        return
    with pytest.raises(UserError, match=says) as error:
        texts(tmp_path / name)
    assert "\n" not in str(error.value)


def test_more_bad_input(tmp_path):
    for missing in ("nothing", "nothing*.txt", "x/**/y.txt"):
        with pytest.raises(UserError, match="no such file or folder, and no file matches it"):
            open_corpus([str(tmp_path / missing)])
    with pytest.raises(UserError, match="no input"):
        open_corpus([])
    write(tmp_path, {"a.parquet": parquet(), "[1].txt": b"brackets"})
    assert texts(tmp_path / "[1].txt") == ["brackets"]  # a file's own name comes before a pattern
    with pytest.raises(UserError, match="a.parquet has no column 'body', but 'id', 'text'"):
        texts(tmp_path / "a.parquet", text_field="body")
    corpus = open_corpus([str(tmp_path / "[1].txt")])
    (tmp_path / "[1].txt").unlink()
    with pytest.raises(UserError, match="cannot be read: No such file"):
        list(corpus.documents())


def test_pipes_are_passed_over(tmp_path):
    write(tmp_path, {"in/a.txt": b"words"})
    os.mkfifo(tmp_path / "in" / "b.txt")
    for item in (tmp_path / "in", tmp_path / "in" / "*.txt"):
        documents, report = read(item)
        assert [d.text for d in documents] == ["words"] and report.names == {"ignored_files": ["b.txt"]}


def test_a_folder_is_left_out(tmp_path):
    write(tmp_path, {"a.txt": b"a", "out/b.txt": b"b", "out/c/d.txt": b"d", "outer/e.txt": b"e"})
    os.symlink(tmp_path / "out", tmp_path / "outer" / "link")
    for item in (tmp_path, tmp_path / "*", tmp_path / "**", tmp_path / "**" / "*.txt"):
        assert texts(item, leave_out=str(tmp_path / "outer" / "link")) == ["a", "e"]
    assert texts(tmp_path / "out", leave_out=str(tmp_path / "out")) == ["b", "d"]


def test_an_encrypted_zip_is_named(tmp_path):
    data = bytearray(zipped({"a.txt": b"secret"}))
    data[6] |= 1  # the flag of encryption, in the member's header and in the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    write(tmp_path, {"a.zip": bytes(data)})
    with pytest.raises(UserError, match="a.zip: .*encrypted.*unpack it"):
        texts(tmp_path / "a.zip")


def test_a_document_that_is_too_long(tmp_path):
    long = {
        "a.txt": b"short\n\n" + b"line\n" * 30,
        "b.txt": b"x" * 200,
        "c.jsonl": b'{"text": "s"}\n' + json.dumps({"text": "x" * 120}).encode(),
        "d.parquet": parquet(["x" * 120]),
    }
    write(tmp_path, long)
    for name, where in (("a.txt", "a.txt"), ("b.txt", "b.txt"), ("c.jsonl", "c.jsonl:2"), ("d.parquet", "d.parquet")):
        with pytest.raises(UserError, match=f"{where}: a document is longer than 100 bytes: .*raise --max_document_mib"):
            texts(tmp_path / name, max_document_bytes=100)
        assert len(texts(tmp_path / name, max_document_bytes=210)) > 0
    with pytest.raises(UserError, match="longer than 100 bytes"):
        texts(tmp_path / "a.txt", documents="file", max_document_bytes=100)
    write(tmp_path, {"exact.txt": b"x" * 100 + b"\n\n" + b"y" * 100})
    assert len(texts(tmp_path / "exact.txt", max_document_bytes=101)) == 2


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="a process's peak memory is read as on Linux")
def test_memory_is_bounded_by_the_document(tmp_path):
    """4 GB of text in one line, 4 MB on disk: refused without being read; an archive of 20,000 files: read in 12 MB."""
    program = (
        "import re, sys; from electra_jax.cli import UserError; from electra_jax.data.readers.corpus import open_corpus\n"
        "import pyarrow\n"  # its own size is not the question
        # Not getrusage: a process begins with the peak of the one that started it.
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])\n"
        "corpus, before, count = open_corpus([sys.argv[1]], max_document_bytes=10_000_000), peak(), 0\n"
        "try:\n"
        "    for document in corpus.documents(): count += 1\n"
        "except UserError as error: print(error)\n"
        "print(count, peak() - before)"
    )

    def run(name):
        run = subprocess.run([sys.executable, "-c", program, str(tmp_path / name)], capture_output=True, text=True, check=True)
        return run.stdout.split("\n")

    frame = zstandard.compress(b"x" * 100_000_000)
    write(tmp_path, {"line.txt.zst": frame * 40})
    message, counted, _ = run("line.txt.zst")
    assert "line.txt.zst: a document is longer than 10,000,000 bytes" in message
    assert counted.startswith("0 ") and int(counted.split()[1]) < 60_000  # KiB

    block = tar({"a.txt": (b"some words of text\n" * 5 + b"\n") * 4})[:1024]  # without the archive's end
    end = b"\0" * 1024
    write(tmp_path, {"many.tar.zst": zstandard.compress(block * 20_000 + end)})
    counted = run("many.tar.zst")[0]
    assert counted.startswith("80000 ") and int(counted.split()[1]) < 12_000


@pytest.fixture(scope="module")
def local_text(tmp_path_factory):
    """A real dataset, built from local text. It is not registered: TFDS knows it by its files alone, as another process would."""
    import tensorflow_datasets as tfds

    class LocalText(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"text": tfds.features.Text(), "body": tfds.features.Text(), "n": tfds.features.Scalar(dtype=np.int64)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, download_manager):
            return {"train": self._generate_examples(40), "test": self._generate_examples(4)}

        def _generate_examples(self, count):
            for n in range(count):
                yield n, {"text": f"document é {n}", "body": f"body {n}" if n % 4 else "", "n": n}

    folder = tmp_path_factory.mktemp("tfds")
    LocalText(file_format="array_record", data_dir=folder).download_and_prepare()
    tfds.core.add_data_dir(folder)


def test_tfds(local_text):
    documents, report = read("tfds:local_text")
    assert sorted(d.text for d in documents) == sorted(f"document é {n}" for n in range(40))
    assert [d.text for d in documents] == texts("tfds:local_text:train") == texts("tfds:local_text:1.0.0:train:text")
    assert {d.source for d in documents} == {"tfds:local_text"} and [d.ordinal for d in documents] == list(range(40))
    documents, report = read("tfds:local_text:test:body")
    assert sorted(d.text for d in documents) == ["body 1", "body 2", "body 3"] and report.empty_documents == 1
    assert texts("tfds:local_text:train[:25%]+test[1:]") == texts("tfds:local_text")[:10] + texts("tfds:local_text:test")[1:]
    sizes = [open_corpus([f"tfds:local_text:train{part}"]).num_bytes for part in ("", "[:50%]")]
    assert sizes[0] > 400 and sizes[1] == pytest.approx(sizes[0] / 2, abs=2)
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("tfds:no_such_thing", "Dataset no_such_thing not found"),
        ("tfds:local_text:nothing", "Unknown split 'nothing'[^(]*$"),
        ("tfds:local_text:train:title", "no feature 'title', but .*text"),
        ("tfds:local_text:train:n", "the feature 'n' is of type int, not text"),
        ("tfds:local_text:2.0.0", "2.0.0"),
        ("tfds:lm1b", "has not been generated yet.*must have been built before"),
        ("tfds:glue/sst2:train:sentence", "must have been built before: tfds.builder"),
        ("tfds:", "write tfds:NAME"),
    ],
)
def test_bad_tfds_names(local_text, item, says):
    with pytest.raises(UserError, match=says) as error:
        texts(item)
    assert "\n" not in str(error.value) and str(error.value).startswith(item)


def test_a_damaged_tfds_shard_is_named(local_text):
    import tensorflow_datasets as tfds

    path = next(tfds.builder("local_text").data_path.glob("*test*array_record*"))
    data = path.read_bytes()
    start = data.index("document é".encode()) - 40
    try:
        path.write_bytes(data[:start] + bytes(80) + data[start + 80 :])
        with pytest.raises(UserError, match="tfds:local_text:test: row [0-9] cannot be read .*build the dataset again"):
            texts("tfds:local_text:test")
    finally:
        path.write_bytes(data)


def test_tfds_by_name_alone():
    """A published builder's own code, with data made up by TFDS: what `tfds:NAME` reads of the real one."""
    import tensorflow_datasets as tfds

    for item in ("tfds:lm1b", "tfds:glue/sst2:train:sentence"):
        with tfds.testing.mock_data(num_examples=3, policy=tfds.testing.MockPolicy.USE_CODE):
            assert len(texts(item)) == 3


def test_real_text(shared_data):
    wiki, _ = read(shared_data / "corpora" / "wikitext-2.valid.txt")
    reviews = open_corpus([str(shared_data / "imdb" / "train.jsonl.xz")])
    assert sum(1 for _ in reviews.documents()) == 25_000
    with open(shared_data / "corpora" / "wikitext-2.valid.txt", "rb") as file:
        words = len(file.read().split())
    assert sum(len(document.text.split()) for document in wiki) == words
    novels = open_corpus([str(shared_data / "corpora" / "novels_train.tar.xz")], documents="file")
    first = next(novels.documents())
    assert first.source == "novels_train.tar.xz/novels/Anon_Clara_1864.txt" and first.text.startswith("CLARA VAUGHAN\nBOOK I.")

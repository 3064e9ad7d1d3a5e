"""A source format is one added file and one line in the dict: a toy .log, from its files to rows."""

import gzip
import io
import tarfile

import numpy as np
import pytest

from electra_jax.cli import UserError
from electra_jax.data import readers, tokenizers
from electra_jax.data.prepare import PrepareOptions, prepare
from electra_jax.data.readers.corpus import open_corpus
from electra_jax.data.rows import order

LOG = b"12:00 INFO it begins\n12:01 WARN it is slow\n--\n12:05 INFO it begins again\n"
DOCUMENTS = ["it begins\nit is slow", "it begins again"]


@pytest.fixture
def log_format(monkeypatch):
    monkeypatch.setitem(readers.FORMATS, ".log", "tests.toys.log_reader")


def archive(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_an_added_format_is_read_compressed_and_in_archives_too(log_format, tmp_path):
    for name, data in {"a.log": LOG, "b.log.gz": gzip.compress(LOG), "c.tar": archive("d.log", LOG), "e.txt": b"plain"}.items():
        (tmp_path / name).write_bytes(data)
    corpus = open_corpus([str(tmp_path)])
    found = [(document.source, document.text) for document in corpus.documents()]
    assert found == [(name, text) for name in ("a.log", "b.log.gz", "c.tar/d.log") for text in DOCUMENTS] + [("e.txt", "plain")]
    (tmp_path / "a.log").write_bytes(b"12:00 INFO caf\xe9\n")
    assert [d.text for d in open_corpus([str(tmp_path / "a.log")]).documents()] == ["caf\ufffd"]
    (tmp_path / "a.log").write_bytes(b"\0\1")
    with pytest.raises(UserError, match="a.log is binary, not text"):
        list(open_corpus([str(tmp_path / "a.log")]).documents())


def test_messages_name_the_added_format(log_format, tmp_path):
    (tmp_path / "a.md").write_text("text")
    with pytest.raises(UserError) as error:
        open_corpus([str(tmp_path / "a.md")])
    formats = ".txt, .jsonl or .log (also .gz, .xz, .zst), .parquet, and .zip, .tar, .tar.gz, .tar.xz or .tar.zst of these"
    assert str(error.value) == f"{tmp_path / 'a.md'} is of no kind that can be read: give {formats}"


def test_without_its_line_it_is_no_format(tmp_path):
    (tmp_path / "a.log").write_bytes(LOG)
    formats = r"\.txt or \.jsonl \(also .gz, .xz, .zst\), .parquet, and .zip, .tar, .tar.gz, .tar.xz or .tar.zst of these$"
    with pytest.raises(UserError, match=f"is of no kind that can be read: give {formats}"):
        open_corpus([str(tmp_path / "a.log")])


def test_from_the_added_format_to_rows(log_format, tmp_path):
    runs = (f"12:00 INFO program {n} begins\n12:01 INFO program {n} ends\n" for n in range(200))
    (tmp_path / "all.log").write_text("--\n".join(runs))
    options = PrepareOptions((str(tmp_path / "all.log"),), str(tmp_path / "rows"), vocab_size=150, length=16, packing="dense", heldout=0.1)
    manifest = prepare(options, workers=1, progress=False)
    assert manifest["corpus"]["documents"] == 200
    tokenizer = tokenizers.load(tmp_path / "rows" / "tokenizer")
    tokens = order.Stream([str(tmp_path / "rows")], None, seed=0).rows(np.arange(8))
    text = tokenizer.decode(tokens[tokens >= 5])
    assert "program" in text and "begins" in text and "info" not in text

"""Documents, one after another, from files, folders, archives and TFDS datasets.

    corpus = open_corpus(["books/", "reviews-*.jsonl.xz", "tfds:wikipedia/20230601.en:train"])
    for document in corpus.documents(): ...

Documents come in a fixed order: the inputs as given, the files of a folder by relative path, the members of an archive and the rows of
a data set as they lie. Everything streams, so that the largest thing in memory is one document. Bytes that are not UTF-8 become
U+FFFD and are counted in the report. How one format is read, its own module says: readers/__init__.py lists them.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import BinaryIO

from electra_jax.cli import UserError
from electra_jax.data import readers
from electra_jax.data.readers import archives, is_packed, kind_of, known_formats, scheme_of
from electra_jax.data.readers.archives import ARCHIVES
from electra_jax.data.readers.decoding import ReadOptions, text_stream
from electra_jax.data.readers.files import find, is_special, reading, size_of
from electra_jax.options import load

# A document is held in memory several times over while it is tokenized.
MAX_DOCUMENT_BYTES = 256 << 20
# What no blank line parts is cut into documents of a hundredth of the corpus, from 16 KiB to 1 MiB, so that some can be held out.
CUT_SHARE, LEAST_CUT_BYTES, MOST_CUT_BYTES = 100, 16 << 10, 1 << 20


@dataclass(frozen=True)
class Document:
    """(source, ordinal) names a document wherever the corpus lies."""

    source: str  # the file's path relative to the input that named it; in an archive, archive/member
    ordinal: int  # its number within the source file, counted through all members of an archive
    text: str  # without line ends around it


@dataclass(frozen=True)
class Source:
    """What one process reads from its beginning to its end: a file, a whole archive, a TFDS split. Picklable."""

    name: str  # no two sources of a corpus share one
    path: str  # where it lies on this machine, or an item of a scheme, tfds:...
    num_bytes: int  # as it is stored


@dataclass
class Report:
    """What was met while reading. Reports of several processes add up by `merge`; the first few names are kept."""

    documents: int = 0
    text_bytes: int = 0
    empty_documents: int = 0
    invalid_utf8_bytes: int = 0
    invalid_utf8_files: int = 0
    empty_files: int = 0
    ignored_files: int = 0
    names: dict[str, list[str]] = field(default_factory=dict)  # of the last three kinds

    def note(self, kind: str, name: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        self.names[kind] = [*self.names.get(kind, []), name][:10]

    def merge(self, other: "Report") -> None:
        for kind in (item.name for item in fields(self) if item.name != "names"):
            setattr(self, kind, getattr(self, kind) + getattr(other, kind))
        for kind, names in other.names.items():
            self.names[kind] = [*self.names.get(kind, []), *names][:10]

    def lines(self) -> list[str]:
        """What a person should know of, a line each; none if all was well."""
        notes = {
            "empty_files": f"{self.empty_files} files hold no document",
            "invalid_utf8_files": f"{self.invalid_utf8_bytes} bytes in {self.invalid_utf8_files} files are not UTF-8 and became U+FFFD "
            "(iconv -f latin1 -t utf-8 mends Latin-1)",
            "ignored_files": f"{self.ignored_files} files of other kinds were passed over",
        }
        lines = []
        for kind, note in notes.items():
            if count := getattr(self, kind):
                names = self.names[kind]
                lines.append(f"{note}: {', '.join(names)}{', ...' if count > len(names) else ''}")
        if self.empty_documents:
            lines.append(f"{self.empty_documents} documents are empty")
        return lines

    def require_documents(self) -> None:
        if not self.documents:
            raise UserError(f"there is no document in the input ({'; '.join(self.lines()) or 'it is empty'}): name text")


@dataclass
class Corpus:
    """See `open_corpus`. Picklable; processes may read different sources at the same time."""

    sources: list[Source]
    ignored: list[str]  # files of unknown kinds, and what is no file, in folders
    options: ReadOptions
    report: Report = field(default_factory=Report)

    def __post_init__(self):
        self._begin_report()

    def _begin_report(self) -> None:
        self.report = Report()
        for name in self.ignored:
            self.report.note("ignored_files", name)

    @property
    def num_bytes(self) -> int:
        return sum(source.num_bytes for source in self.sources)

    @property
    def text_bytes(self) -> int:
        """A guess of the text's size: compressed text grows about 3.5 times."""
        return sum(int(each.num_bytes * (3.5 if not scheme_of(each.path) and is_packed(each.path) else 1)) for each in self.sources)

    def documents(self) -> Iterator[Document]:
        """Every document that is not empty, in order, with `report` filled anew. UserError if there is none."""
        self._begin_report()
        for source in self.sources:
            yield from self.read(source, self.report)
        self.report.require_documents()

    def read(self, source: Source, report: Report | None = None) -> Iterator[Document]:
        """The documents of one source, counted into `report`. UserError names the file that cannot be read, and why."""
        report = Report() if report is None else report
        ordinal = 0
        for name, texts in self._files(source, report):
            before, valid = ordinal, True
            for text, invalid_bytes in texts:
                report.invalid_utf8_bytes += invalid_bytes
                if invalid_bytes and valid:
                    report.note("invalid_utf8_files", name)
                    valid = False
                text = text.strip("\r\n")
                if not text or text.isspace():
                    report.empty_documents += 1
                    continue
                report.documents += 1
                report.text_bytes += len(text) if text.isascii() else len(text.encode())
                yield Document(name, ordinal, text)
                ordinal += 1
            if ordinal == before:
                report.note("empty_files", name)

    def _files(self, source: Source, report: Report) -> Iterator[tuple[str, Iterator[tuple[str, int]]]]:
        """(name, texts) of the source, or of each member of an archive."""
        if scheme := scheme_of(source.path):
            yield source.name, load(readers.SCHEMES, scheme).texts(source.path, self.options)
            return
        kind, compression = kind_of(source.path)
        with reading(source.path), open(source.path, "rb") as file:
            if kind not in ARCHIVES:
                yield source.name, self._texts(file, kind, compression, source.path)
                return
            for member, stream in archives.members(kind, file, compression, source.path):
                name, path, member_kind = f"{source.name}/{member}", f"{source.path}/{member}", kind_of(member)
                if member_kind is None or member_kind[0] in ARCHIVES:
                    report.note("ignored_files", name)
                elif load(readers.FORMATS, member_kind[0]).TEXT:
                    yield name, self._texts(stream, *member_kind, path)
                else:  # a stream cannot seek, which such a format needs
                    with tempfile.TemporaryFile() as whole:
                        shutil.copyfileobj(stream, whole)
                        yield name, self._texts(whole, *member_kind, path)

    def _texts(self, file: BinaryIO, kind: str, compression: str, path: str) -> Iterator[tuple[str, int]]:
        """(text, number of bytes that were not UTF-8) of each document, in the order of the file."""
        module = load(readers.FORMATS, kind)
        with reading(path):
            stream = text_stream(file, compression, path) if module.TEXT else file
            yield from module.texts(stream, path, self.options)


def open_corpus(
    inputs: Sequence[str],
    *,
    documents: str = "auto",
    text_field: str = "text",
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    leave_out: str | None = None,
) -> Corpus:
    """Finds what the inputs name. Reads nothing but the folders' listings.

    Args:
      inputs: files, folders, globs, or `tfds:NAME[:SPLIT[:FEATURE]]` (SPLIT train, FEATURE `text_field` unless given).
        Hidden files are passed over; in folders, so are files of unknown kinds and pipes, which the report counts.
      documents: "blank_lines" between the documents of a .txt, or "file": each .txt one document; "auto" is "blank_lines", and cuts what
        none of them parts (CUT_SHARE).
      text_field: the field of .jsonl and column of .parquet that hold the text.
      max_document_bytes: a longer document (of .jsonl: a longer line) is a UserError, and is not read into memory.
      leave_out: a folder that is passed over where it lies in an input: the output.

    UserError: an input that names nothing, or nothing that can be read.
    """
    if documents not in ("auto", "blank_lines", "file"):
        raise UserError(f"documents={documents!r}: choose auto, blank_lines or file")
    if not inputs:
        raise UserError("no input: name files, folders, globs or tfds:NAME")
    options = ReadOptions(documents == "file", text_field, max_document_bytes)
    sources, ignored, seen = [], [], Counter()
    for item in map(str, inputs):
        found = []
        for name, path in find(item, leave_out):
            scheme = scheme_of(path)
            if not scheme and (kind_of(path) is None or is_special(path)):
                if path == item:
                    raise UserError(f"{path} is of no kind that can be read: give {known_formats()}")
                ignored.append(name)
                continue
            size = load(readers.SCHEMES, scheme).num_bytes(path, options) if scheme else size_of(path)
            seen[name] += 1
            found.append(Source(name if seen[name] == 1 else f"{name}#{seen[name]}", path, size))
        if not found:
            raise UserError(f"{item} holds no file that can be read: give {known_formats()}")
        sources += found
    corpus = Corpus(sources, ignored, options)
    if documents == "auto":
        cut_bytes = min(MOST_CUT_BYTES, max(LEAST_CUT_BYTES, corpus.text_bytes // CUT_SHARE))
        corpus.options = replace(options, cut_bytes=cut_bytes)
    return corpus

"""Documents, one after another, from files, folders, archives and TFDS datasets.

    corpus = open_corpus(["books/", "reviews-*.jsonl.xz", "tfds:wikipedia/20230601.en:train"])
    for document in corpus.documents(): ...

The order is fixed: the inputs as given, folders by relative path, archives and rows as they lie. Everything streams: the
largest thing in memory is one document. Bytes that are not UTF-8 become U+FFFD and are counted in the report.
"""

import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import BinaryIO

from electra_jax.cli import UserError
from electra_jax.data.readers.files import ARCHIVES, FORMATS, archive_members, decompress, find, is_special, kind_of, reading, size_of

# A document in one single line takes about 12 times its size in memory to tokenize, one of many lines 2 times.
MAX_DOCUMENT_BYTES = 256 << 20


@dataclass(frozen=True)
class Document:
    """(source, ordinal) names a document wherever the corpus lies."""

    source: str  # the file's path relative to the input that named it; in an archive, archive/member
    ordinal: int  # its number within the source file, counted through all members of an archive
    text: str  # without line ends around it


@dataclass(frozen=True)
class Source:
    """What is read from its beginning to its end: a file, a whole archive, a TFDS split. Picklable."""

    name: str  # no two sources of a corpus share one
    path: str  # where it lies on this machine, or tfds:...
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
            "invalid_utf8_files": f"{self.invalid_utf8_bytes} bytes in {self.invalid_utf8_files} files are not UTF-8 and became U+FFFD",
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
    whole_files: bool
    text_field: str
    max_document_bytes: int
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
        if source.path.startswith("tfds:"):
            yield source.name, _tfds_texts(source.path, self.text_field)
            return
        kind, compression = kind_of(source.path)
        with reading(source.path), open(source.path, "rb") as file:
            if kind not in ARCHIVES:
                yield source.name, self._texts(file, kind, compression, source.path)
                return
            for member, stream in archive_members(kind, file, compression, source.path):
                name, path, member_kind = f"{source.name}/{member}", f"{source.path}/{member}", kind_of(member)
                if member_kind is None or member_kind[0] in ARCHIVES:
                    report.note("ignored_files", name)
                elif member_kind[0] == ".parquet":  # its index stands at its end: a stream will not do
                    with tempfile.TemporaryFile() as whole:
                        shutil.copyfileobj(stream, whole)
                        yield name, self._texts(whole, *member_kind, path)
                else:
                    yield name, self._texts(stream, *member_kind, path)

    def _texts(self, file: BinaryIO, kind: str, compression: str, path: str) -> Iterator[tuple[str, int]]:
        """(text, number of bytes that were not UTF-8) of each document, in the order of the file."""
        with reading(path):
            if kind == ".parquet":
                yield from self._parquet(file, path)
                return
            stream = decompress(file, compression)
            if b"\0" in stream.peek(8192)[:8192]:
                raise UserError(f"{path} is binary, not text: remove it, or convert it to UTF-8")
            if stream.peek(3)[:3] == b"\xef\xbb\xbf":  # a byte-order mark
                stream.read(3)
            if kind == ".jsonl":
                yield from self._jsonl(stream, path)
            elif self.whole_files:
                data = stream.read(self.max_document_bytes + 1)
                self._check_size(len(data), path)
                if data:
                    yield _decode(data.replace(b"\r\n", b"\n"))
            else:
                yield from self._paragraphs(stream, path)

    def _paragraphs(self, stream: BinaryIO, path: str) -> Iterator[tuple[str, int]]:
        """What stands between lines of white space."""
        lines, size = [], 0
        while line := stream.readline(self.max_document_bytes - size + 1):
            if line.isspace() or (not line.isascii() and not line.decode(errors="replace").strip()):
                if lines:
                    yield _decode(b"".join(lines).replace(b"\r\n", b"\n"))
                lines, size = [], 0
            else:
                lines.append(line)
                size += len(line)
                self._check_size(size, path)
        if lines:
            yield _decode(b"".join(lines).replace(b"\r\n", b"\n"))

    def _jsonl(self, stream: BinaryIO, path: str) -> Iterator[tuple[str, int]]:
        number = 0
        while line := stream.readline(self.max_document_bytes + 1):
            number += 1
            where = f"{path}:{number}"
            self._check_size(len(line), where)
            text, invalid_bytes = _decode(line)
            if text.isspace():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not JSON ({error}): a .jsonl file has one object a line") from None
            if not isinstance(record, dict):
                raise UserError(f"{where} is not a JSON object: a .jsonl file has one object a line")
            if self.text_field not in record:
                raise UserError(
                    f"{where} has no field {self.text_field!r}, but {', '.join(map(repr, record)) or 'none at all'}: "
                    "name the one that holds the text (text_field)"
                )
            value = record[self.text_field]
            if not isinstance(value, str | None):
                raise UserError(f"{where}: the field {self.text_field!r} is of type {type(value).__name__}, not text")
            # JSON can name half of a surrogate pair, which is no character: its bytes are not UTF-8.
            text, more = _decode((value or "").encode("utf-8", "surrogatepass"))
            yield text, invalid_bytes + more

    def _parquet(self, file: BinaryIO, path: str) -> Iterator[tuple[str, int]]:
        import pyarrow
        import pyarrow.parquet

        try:
            # Pages are read as they are needed: a row group may be larger than memory.
            table = pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            names = table.schema_arrow.names
            if self.text_field not in names:
                raise UserError(
                    f"{path} has no column {self.text_field!r}, but {', '.join(map(repr, names))}: "
                    "name the one that holds the text (text_field)"
                )
            for batch in table.iter_batches(batch_size=64, columns=[self.text_field]):
                column = batch.column(0)
                if pyarrow.types.is_dictionary(column.type):
                    column = column.dictionary_decode()
                # As bytes: a Parquet string should be UTF-8, and nobody checks.
                for value in column.cast(pyarrow.large_binary()):
                    data = value.as_py() or b""
                    self._check_size(len(data), path)
                    yield _decode(data)
        except pyarrow.ArrowNotImplementedError:
            raise UserError(f"{path}: the column {self.text_field!r} holds no text: name the one that does (text_field)") from None
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{path} is damaged or cut short ({error}): make or download it again") from None

    def _check_size(self, size: int, where: str) -> None:
        if size > self.max_document_bytes:
            raise UserError(
                f"{where}: a document is longer than {self.max_document_bytes:,} bytes: put blank lines between documents, "
                "cut it, or raise --max_document_mib if memory allows"
            )


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
      documents: "blank_lines" between the documents of a .txt, or "file": each .txt one document; "auto" is "blank_lines".
      text_field: the field of .jsonl and column of .parquet that hold the text.
      max_document_bytes: a longer document (of .jsonl: a longer line) is a UserError, and is not read into memory.
      leave_out: a folder that is passed over where it lies in an input: the output.

    UserError: an input that names nothing, or nothing that can be read.
    """
    if documents not in ("auto", "blank_lines", "file"):
        raise UserError(f"documents={documents!r}: choose auto, blank_lines or file")
    if not inputs:
        raise UserError("no input: name files, folders, globs or tfds:NAME")
    sources, ignored, seen = [], [], Counter()
    for item in map(str, inputs):
        found = []
        for name, path in find(item, leave_out):
            if not path.startswith("tfds:") and (kind_of(path) is None or is_special(path)):
                if path == item:
                    raise UserError(f"{path} is of no kind that can be read: give {FORMATS}")
                ignored.append(name)
                continue
            size = _tfds(path, text_field)[2] if path.startswith("tfds:") else size_of(path)
            seen[name] += 1
            found.append(Source(name if seen[name] == 1 else f"{name}#{seen[name]}", path, size))
        if not found:
            raise UserError(f"{item} holds no file that can be read: give {FORMATS}")
        sources += found
    return Corpus(sources, ignored, documents == "file", text_field, max_document_bytes)


def _decode(data: bytes) -> tuple[str, int]:
    """(text with U+FFFD for what is not UTF-8, how many bytes were not)."""
    try:
        return data.decode(), 0
    except UnicodeDecodeError:
        invalid = re.findall("[\udc80-\udcff]", data.decode(errors="surrogateescape"))  # one for each such byte
        return data.decode(errors="replace"), len(invalid)


_TFDS = re.compile(r"tfds:(?P<name>[\w/.\-]+(:\d+\.\d+\.\d+)?)(:(?P<split>([^:\[\]]|\[[^\]]*\])+))?(:(?P<feature>\w+))?")


def _tfds(item: str, text_field: str):
    """(data source, feature, bytes) of `tfds:NAME[:SPLIT[:FEATURE]]`, built before in TFDS's data folder; no TensorFlow."""
    parts = _TFDS.fullmatch(item)
    if not parts:
        raise UserError(f"{item}: write tfds:NAME[:SPLIT[:FEATURE]], such as tfds:wikipedia/20230601.en:train:text")
    name, split, feature = parts["name"], parts["split"] or "train", parts["feature"] or text_field
    import tensorflow_datasets as tfds

    built = False
    try:
        try:
            builder = tfds.builder(name)
        except tfds.core.DatasetNotFoundError:
            import tensorflow_datasets.text  # noqa: F401  (without TensorFlow, importing it is what makes glue or c4 known)

            builder = tfds.builder(name)
        built = os.path.isdir(builder.data_dir)
        features = builder.info.features
        if feature not in features:
            raise UserError(f"{item}: no feature {feature!r}, but {', '.join(features)}: name the one that holds the text")
        rows = tfds.data_source(name, split=split, download=False)
        splits = builder.info.splits
        total = sum(part.num_examples for part in splits.values())
        return rows, feature, int(builder.info.dataset_size) * len(rows) // max(1, total)
    except UserError:
        raise
    except Exception as error:  # TFDS raises KeyError, AssertionError, ValueError, NotImplementedError ... for a wrong name
        how = f'tfds.builder({name!r}, file_format="array_record").download_and_prepare()'
        raise UserError(f"{item}: {_reason(error)}" + ("" if built else f" (a dataset must have been built before: {how})")) from None


def _reason(error: Exception) -> str:
    return str(error).strip().strip("\"'").split("\n")[0] or type(error).__name__


def _tfds_texts(item: str, text_field: str) -> Iterator[tuple[str, int]]:
    rows, feature, _ = _tfds(item, text_field)
    for number in range(len(rows)):
        try:
            value = rows[number][feature]
        except Exception as error:  # ArrayRecord's RuntimeError, or what decoders say
            raise UserError(f"{item}: row {number} cannot be read ({_reason(error)}): build the dataset again") from None
        if not isinstance(value, bytes | str):
            raise UserError(f"{item}: the feature {feature!r} is of type {type(value).__name__}, not text")
        yield _decode(value) if isinstance(value, bytes) else (value, 0)

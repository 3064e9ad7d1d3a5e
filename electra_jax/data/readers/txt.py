"""Plain text (.txt): blank lines stand between documents, or each file is one document. Text may have none: ReadOptions.cut_bytes."""

from collections.abc import Iterator
from typing import BinaryIO

from electra_jax.data.readers.decoding import ReadOptions, decode

TEXT = True


def texts(stream: BinaryIO, path: str, options: ReadOptions) -> Iterator[tuple[str, int]]:
    if not options.whole_files:
        yield from _paragraphs(stream, path, options)
        return
    data = stream.read(options.max_document_bytes + 1)
    options.check_size(len(data), path)
    if data:
        yield decode(data.replace(b"\r\n", b"\n"))


def _paragraphs(stream: BinaryIO, path: str, options: ReadOptions) -> Iterator[tuple[str, int]]:
    """What stands between lines of white space, or as much of it as options.cut_bytes allows."""
    document = bytearray()
    while line := stream.readline(options.max_document_bytes - len(document) + 1):
        if line.isspace() or (not line.isascii() and not line.decode(errors="replace").strip()):
            if document:
                yield decode(bytes(document).replace(b"\r\n", b"\n"))
                document.clear()
        else:
            document += line
            options.check_size(len(document), path)
            if 0 < options.cut_bytes <= len(document):
                yield decode(bytes(document).replace(b"\r\n", b"\n"))
                document.clear()
    if document:
        yield decode(bytes(document).replace(b"\r\n", b"\n"))

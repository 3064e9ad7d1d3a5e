"""What the readers of all formats share: their options, the text in some bytes, and the limit on a document's size."""

import io
import re
from dataclasses import dataclass
from typing import BinaryIO

from electra_jax.cli import UserError
from electra_jax.data.readers.compressions import decompress


@dataclass(frozen=True)
class ReadOptions:
    """How documents are found in files; a reader takes what concerns its format."""

    whole_files: bool  # a .txt is one document, whatever blank lines it has
    text_field: str  # the field of .jsonl, column of .parquet or feature of TFDS that holds the text
    max_document_bytes: int
    cut_bytes: int = 0  # text that no blank line parts is cut at the end of the line that makes it so long; 0: nowhere

    def check_size(self, size: int, where: str) -> None:
        """Raises UserError where a document, or the part of it read so far, is too long."""
        if size > self.max_document_bytes:
            raise UserError(
                f"{where}: a document is longer than {self.max_document_bytes:,} bytes: put blank lines between documents, "
                "cut it, or raise --max_document_mib if memory allows"
            )


def decode(data: bytes) -> tuple[str, int]:
    """(text with U+FFFD in the place of what is not UTF-8, how many bytes were not)."""
    try:
        return data.decode(), 0
    except UnicodeDecodeError:
        invalid = re.findall("[\udc80-\udcff]", data.decode(errors="surrogateescape"))  # one for each such byte
        return data.decode(errors="replace"), len(invalid)


def text_stream(file: BinaryIO, compression: str, path: str) -> io.BufferedReader:
    """The file's bytes, decompressed, without a byte-order mark. Raises UserError where they are no text."""
    stream = decompress(file, compression)
    if b"\0" in stream.peek(8192)[:8192]:
        raise UserError(f"{path} is binary, not text: remove it, or convert it to UTF-8")
    if stream.peek(3)[:3] == b"\xef\xbb\xbf":
        stream.read(3)
    return stream

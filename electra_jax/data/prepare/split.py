"""Whether a document is held out: a hash of its text decides, so that equal texts fall on one side whatever else is prepared."""

import hashlib
import re
import unicodedata

RULE = 3  # 1 hashed a document's bytes as they were, 2 left blanks before line ends in
_BLANKS = re.compile(r"[ \t]+\n")


def document_hash(text: str) -> bytes:
    """16 bytes: the first 8 decide the split, the others the bucket. Equal for copies of a document that differ in line ends and blanks
    before them, in white space or a byte-order mark around the document, or in their Unicode form (NFC or not)."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if " \n" in text or "\t\n" in text:
        text = _BLANKS.sub("\n", text)
    return text_hash(text.strip().strip("\ufeff").strip().encode())


def default_share(text_bytes: int) -> float:
    """The share of documents to hold out: some 200 kB of text are enough to evaluate on, and of little text a tenth must do. 0.01 from
    20 MB on."""
    return round(min(0.1, max(0.01, 200_000 / max(text_bytes, 1))), 2)


def text_hash(text: bytes) -> bytes:
    """16 bytes."""
    return hashlib.blake2b(text, digest_size=16).digest()


def is_heldout(digest: bytes, fraction: float) -> bool:
    return int.from_bytes(digest[:8], "big") < fraction * 2**64

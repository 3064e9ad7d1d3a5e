"""Whether a document is held out: a hash of its text decides, so that equal texts fall on one side whatever else is prepared."""

import hashlib
import unicodedata

RULE = 2  # 1 hashed a document's bytes as they were


def document_hash(text: str) -> bytes:
    """16 bytes: the first 8 decide the split, the others the bucket. Equal for copies of a document that differ in line ends, in white
    space around them, or in their Unicode form (NFC or not)."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text_hash(text.strip().encode())


def text_hash(text: bytes) -> bytes:
    """16 bytes."""
    return hashlib.blake2b(text, digest_size=16).digest()


def is_heldout(digest: bytes, fraction: float) -> bool:
    return int.from_bytes(digest[:8], "big") < fraction * 2**64

"""Whether a document is held out: a hash of its text decides, so that equal texts fall on one side whatever else is prepared."""

import hashlib


def text_hash(text: bytes) -> bytes:
    """16 bytes: the first 8 decide the split, the others the bucket."""
    return hashlib.blake2b(text, digest_size=16).digest()


def is_heldout(digest: bytes, fraction: float) -> bool:
    return int.from_bytes(digest[:8], "big") < fraction * 2**64

"""Which formats a corpus may have: the end of a file's name tells its format, and each format has a module of its own here.

To add a format, write one module with `TEXT` and `texts`, as txt.py has them, and give its ending a line in FORMATS:

    TEXT: bool: `texts` wants a stream of text, which is decompressed and begun behind a byte-order mark; otherwise it wants the file
      as it lies, which can seek and is not compressed.
    texts(stream, path, options: decoding.ReadOptions) -> Iterator[(text, number of bytes that were not UTF-8)], a document each.
      `path` is what messages call the stream.
"""

import os

from electra_jax.data.readers.archives import ARCHIVES
from electra_jax.data.readers.compressions import COMPRESSIONS
from electra_jax.options import load

FORMATS = {
    ".txt": "electra_jax.data.readers.txt",
    ".jsonl": "electra_jax.data.readers.jsonl",
    ".parquet": "electra_jax.data.readers.parquet",
}
# Inputs that are no files of this machine, by their beginning. Such a module has `num_bytes(item, options)` and `texts(item, options)`.
SCHEMES = {"tfds:": "electra_jax.data.readers.tfds"}

_SHORT_ENDINGS = {".tgz": (".tar", ".gz"), ".txz": (".tar", ".xz")}


def kind_of(path: str) -> tuple[str, str] | None:
    """(an ending of FORMATS or ARCHIVES, compression or "") by the end of the name; None where it is none of these."""
    stem, kind = os.path.splitext(path.lower())
    if kind in _SHORT_ENDINGS:
        return _SHORT_ENDINGS[kind]
    compression = ""
    if kind in COMPRESSIONS:
        compression, kind = kind, os.path.splitext(stem)[1]
    if kind in FORMATS:
        known = not compression or load(FORMATS, kind).TEXT
    else:
        known = kind == ".tar" or (kind in ARCHIVES and not compression)
    return (kind, compression) if known else None


def scheme_of(item: str) -> str | None:
    """The key of SCHEMES that the input begins with; None for a path."""
    return next((scheme for scheme in SCHEMES if item.startswith(scheme)), None)


def is_packed(path: str) -> bool:
    """Whether the file is smaller than the text in it. `path` has a kind."""
    kind, compression = kind_of(path)
    return bool(compression) or kind == ".zip" or (kind in FORMATS and not load(FORMATS, kind).TEXT)


def known_formats() -> str:
    """All that can be read, for a message."""
    text = [ending for ending in FORMATS if load(FORMATS, ending).TEXT]
    others = [ending for ending in FORMATS if ending not in text]
    archives = [*ARCHIVES, *(f".tar{compression}" for compression in COMPRESSIONS)]
    return ", ".join([f"{_or(text)} (also {', '.join(COMPRESSIONS)})", *others, f"and {_or(archives)} of these"])


def _or(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

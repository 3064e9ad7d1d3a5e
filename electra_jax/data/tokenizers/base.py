"""What all kinds of tokenizers share: the protocol, the special pieces, the digest of what decides the ids, and how files are saved."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from electra_jax.cli import UserError
from electra_jax.files import write_whole

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # a trained vocabulary begins with them, in this order
CONFIG = "tokenizer_config.json"


class AlphabetTooLarge(UserError):
    """The text's characters alone need more pieces than were asked for."""


class Tokenizer(Protocol):
    """What the data code asks of a tokenizer. `V` is `vocab_size`."""

    kind: str  # its key in tokenizers.KINDS
    vocab_size: int
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    word_starts: np.ndarray  # bool [V]: the piece begins a word; true of the special pieces
    options: dict  # "kind", and all else that decides the ids beside the vocabulary
    sha256: str  # of options and vocabulary: equal digests give equal ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The int32 ids of each text, without special tokens. The arrays may be read-only."""

    def encode_with_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(`encode_batch`'s ids [n], spans int32 [n, 2]) of each text: piece i stands for the characters text[spans[i, 0] : spans[i, 1]].

        Characters are those of the text as it was given, whatever lower-casing and normalisation made of them. Spans never begin with
        white space, and come in order. Where one character gives several pieces, they share it: see the kind's own method.
        """

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The pieces as the vocabulary writes them."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text for people; special tokens show."""

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the tokenizer's files into `directory`, each whole or not at all; `load(directory)` reads them."""


def digest(options: Mapping, vocabulary: bytes) -> str:
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode() + b"\0" + vocabulary).hexdigest()


def save_files(directory: str | os.PathLike, files: Mapping[str, bytes], tokenizer: Tokenizer, config: Mapping | None = None) -> None:
    """Writes the files, each whole, and last the config, whose hash tells `load` whether the files fit together."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_whole(directory / name, data)
    whole = {**(config or {}), "options": tokenizer.options, "sha256": tokenizer.sha256}
    write_whole(directory / CONFIG, json.dumps(whole, indent=2, sort_keys=True) + "\n")

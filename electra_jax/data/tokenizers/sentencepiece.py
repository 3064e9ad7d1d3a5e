"""SentencePiece: a unigram or BPE model over text with its spaces (https://github.com/google/sentencepiece), trained or read."""

import functools
import io
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from electra_jax.cli import UserError
from electra_jax.data.tokenizers.base import SPECIALS, AlphabetTooLarge, digest, save_files

FILES = ("spm.model",)
ENDINGS = {".model": "SentencePiece .model"}
MAX_TRAINING_BYTES = 256 << 20  # training needs some twenty times as much memory as text


class SentencePiece:
    """A SentencePiece model, unigram or BPE, from its serialised bytes. Its five special pieces are never given for text."""

    kind = "sentencepiece"
    NAMES = (("[PAD]", "<pad>"), ("[UNK]", "<unk>"), ("[CLS]", "<s>"), ("[SEP]", "</s>"), ("[MASK]", "<mask>"))

    def __init__(self, model: bytes):
        self._model, self.vocabulary, specials, lower_case = _read_model(model, self.NAMES)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        self.vocab_size = len(self.vocabulary)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = specials
        self.word_starts = np.array([piece.startswith("▁") for piece in self.vocabulary])
        self.word_starts[list(specials)] = True
        self.lower_case = lower_case
        self.options = {"kind": self.kind, "lower_case": lower_case}
        self.sha256 = digest(self.options, self._model)

    def __reduce__(self):
        return SentencePiece, (self._model,)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        # One thread, because preparation runs a process on each core.
        return self._processor.encode(list(texts), return_type="numpy", num_threads=1)

    def encode_with_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """See `Tokenizer`. A piece's white space, its "▁", is left out of its span; a "▁" that is a piece by itself has an empty span,
        at the character behind the space. Of a character that normalisation makes several pieces of (Ⅷ to V, I, I, I) the last has
        the character, and those before it an empty span at its beginning."""
        rows = []
        for text, found in zip(texts, self._processor.encode(list(texts), return_type="offset_mapping", num_threads=1), strict=True):
            spans = np.array(found["offsets"], np.int32).reshape(-1, 2)
            for span in spans:
                begin, end = span.tolist()
                piece = text[begin:end]
                span[0] = end - len(piece.lstrip())
            rows.append((np.array(found["ids"], np.int32), spans))
        return rows

    def pieces(self, ids: Iterable[int]) -> list[str]:
        return [self.vocabulary[number] for number in ids]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.pieces(ids)).replace("▁", " ").strip()

    def save(self, directory: str | os.PathLike) -> None:
        save_files(directory, {"spm.model": self._model}, self)


def _read_model(model: bytes, names) -> tuple[bytes, tuple[str, ...], tuple[int, ...], bool]:
    """(model with its special pieces as control symbols, pieces, the special ids, whether it lowers case)."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2 as protos

    try:
        proto = protos.ModelProto.FromString(model)
        sentencepiece.SentencePieceProcessor(model_proto=model)
    except (DecodeError, RuntimeError) as error:
        raise UserError(f"not a SentencePiece model, or a damaged one ({error}): give its .model file") from None
    ids = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    specials, missing = [], []
    for choices in names:
        found = [ids[name] for name in choices if name in ids]
        specials += found[:1]
        if not found:
            missing.append(" or ".join(choices))
    if missing:
        raise UserError(
            f"the SentencePiece model has no piece {', no '.join(missing)}: ELECTRA needs all of padding, unknown, [CLS], [SEP] "
            "and [MASK]; train a model here, or with them as control symbols"
        )
    changed = False
    for number in specials:
        piece = proto.pieces[number]
        if piece.type not in (piece.CONTROL, piece.UNKNOWN):  # a user-defined symbol would be found in text
            piece.type, changed = piece.CONTROL, True
    pieces = tuple(piece.piece for piece in proto.pieces)
    lower_case = proto.normalizer_spec.name.endswith("_cf")
    return proto.SerializeToString() if changed else model, pieces, tuple(specials), lower_case


def train_sentencepiece(texts: Iterable[str], vocab_size: int, *, model_type: str = "unigram", lower_case: bool = False) -> SentencePiece:
    """Trains on the texts; `model_type` is "unigram" or "bpe". The same texts give the same model, in every run and process."""
    return SentencePiece(_train_model(texts, vocab_size, model_type, lower_case))


def _train(model_type: str, texts: Iterable[str], vocab_size: int, *, lower_case: bool | None, strip_accents: bool | None) -> SentencePiece:
    return train_sentencepiece(texts, vocab_size, model_type=model_type, lower_case=bool(lower_case))


TRAINED = {name: functools.partial(_train, name) for name in ("unigram", "bpe")}


def find(folder: Path, config: dict) -> Path | None:
    return min(folder.glob("*.model"), default=None)


def read(path: Path, data: bytes, config: dict, lower_case: bool | None, strip_accents: bool | None) -> SentencePiece:
    return SentencePiece(data)


def _train_model(texts: Iterable[str], vocab_size: int, model_type: str, lower_case: bool) -> bytes:
    """A serialised model of at most `vocab_size` pieces.

    Of more than 256 MiB of text (a line counting for 64 bytes at least) a sample is taken, line by line, by a hash of the line.
    UserError if `vocab_size` is too small for the alphabet.
    """
    lines = _sample_lines(texts, MAX_TRAINING_BYTES)
    if not lines:
        raise UserError("there is no word in the text to train a vocabulary on: is the input empty?")
    pad, unk, *control = SPECIALS
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            model_type=model_type,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            pad_id=0,
            pad_piece=pad,
            unk_id=1,
            unk_piece=unk,
            bos_id=-1,
            eos_id=-1,
            control_symbols=control,
            normalization_rule_name="nmt_nfkc_cf" if lower_case else "nmt_nfkc",
            num_threads=16,  # not the number of cores: how sums are rounded depends on the number of threads
            max_sentence_length=1 << 20,
            minloglevel=2,
        )
    except RuntimeError as error:
        condition, _, reason = str(error).rpartition("]")  # source.cc(line) [condition] reason
        reason = reason.strip() or condition[condition.find("[") + 1 :]
        kind = AlphabetTooLarge if "required_chars" in reason else UserError
        raise kind(f"SentencePiece cannot train {vocab_size} pieces on this text: {reason} (another vocabulary size may do)") from None
    return written.getvalue()


def _cost(line: bytes) -> int:
    """What a line counts for: a short one takes as much memory as one of 64 bytes."""
    return max(len(line), 64)


def _sample_lines(texts: Iterable[str], max_bytes: int) -> list[str]:
    """Lines, the long ones cut at white space; when there are too many, those whose hash is in the lower half, and so on."""
    lines, size, limit = [], 0, 1 << 32
    for text in texts:
        # SentencePiece passes over each line that holds U+2585, which stands for the unknown in it.
        for match in re.finditer(r"\S.{0,999}(?=\s|$)|\S{1,1000}", text.replace("\u2585", " ")):
            data = match[0].encode()
            if zlib.crc32(data) < limit:
                lines.append(match[0])
                size += _cost(data)
        while size > max_bytes:
            limit //= 2
            lines = [line for line in lines if zlib.crc32(line.encode()) < limit]
            size = sum(_cost(line.encode()) for line in lines)
    return lines

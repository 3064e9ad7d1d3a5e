"""Text -> token ids: BERT's WordPiece, or SentencePiece, trained or read, behind one protocol.

No tokenizer here gives a special id for text: "[MASK]" in a document is ordinary text. So `[CLS]`, `[SEP]` and `[PAD]` in a
row are always structure.
"""

import hashlib
import json
import os
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece
import tokenizers
from tokenizers import decoders, processors

from electra_jax.cli import UserError
from electra_jax.data.tokenizers import training
from electra_jax.data.tokenizers.training import MAX_WORD_CHARS, SPECIALS, bert_rules, split_words


class Tokenizer(Protocol):
    """What the data code asks of a tokenizer. `V` is `vocab_size`."""

    kind: str  # "wordpiece" | "sentencepiece"
    vocab_size: int
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    word_starts: np.ndarray  # bool [V]: the piece begins a word; true of the special pieces
    options: dict  # all that decides the ids beside the vocabulary
    sha256: str  # of options and vocabulary: equal digests give equal ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The int32 ids of each text, without special tokens. The arrays may be read-only."""

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The pieces as the vocabulary writes them."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text for people; special tokens show."""

    def save(self, directory) -> None:
        """Writes the tokenizer's files into `directory`, each whole or not at all; `load(directory)` reads them."""


class WordPiece:
    """BERT's BasicTokenizer and WordpieceTokenizer: google-research/electra, model/tokenization.py.

    The vocabulary's order is the ids. `strip_accents=None` follows `lower_case`, as in BERT. `chinese_chars`: each is a word by itself;
    some models of Japanese and Korean switch it off.
    """

    kind = "wordpiece"

    def __init__(self, vocabulary: Sequence[str], lower_case: bool = True, strip_accents: bool | None = None, chinese_chars: bool = True):
        self.vocabulary = tuple(vocabulary)
        ids = {piece: number for number, piece in enumerate(self.vocabulary)}
        _check_vocabulary(self.vocabulary, ids)
        self.lower_case = lower_case
        self.strip_accents = lower_case if strip_accents is None else strip_accents
        self.chinese_chars = chinese_chars
        self.vocab_size = len(self.vocabulary)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (ids[name] for name in SPECIALS)
        self.word_starts = np.array([not piece.startswith("##") for piece in self.vocabulary])
        self.options = {
            "kind": self.kind,
            "lower_case": self.lower_case,
            "strip_accents": self.strip_accents,
            "max_word_chars": MAX_WORD_CHARS,
            **({} if chinese_chars else {"chinese_chars": False}),
        }
        self.sha256 = _digest(self.options, "\n".join(self.vocabulary).encode())
        self._ids_of_word = _WordCache(bert_rules(ids, self.lower_case, self.strip_accents, chinese_chars), self.lower_case)

    def __reduce__(self):  # a copy for another process: without the cache
        return WordPiece, (self.vocabulary, self.lower_case, self.strip_accents, self.chinese_chars)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        ids = self._ids_of_word.__getitem__
        return [np.frombuffer(b"".join(map(ids, split_words(text))), np.int32) for text in texts]

    def pieces(self, ids: Iterable[int]) -> list[str]:
        return [self.vocabulary[number] for number in ids]

    def decode(self, ids: Iterable[int]) -> str:
        return decoders.WordPiece().decode(self.pieces(ids))

    def save(self, directory) -> None:
        """BERT's vocab.txt, which `load` reads, and what Hugging Face's AutoTokenizer reads."""
        rust = bert_rules(self.vocabulary_ids(), self.lower_case, self.strip_accents, self.chinese_chars)
        rust.add_special_tokens(list(SPECIALS))
        rust.post_processor = processors.BertProcessing(("[SEP]", self.sep_id), ("[CLS]", self.cls_id))
        config = {
            "tokenizer_class": "ElectraTokenizer",
            "do_lower_case": self.lower_case,
            "strip_accents": self.strip_accents,
            "tokenize_chinese_chars": self.chinese_chars,
            **{f"{name.strip('[]').lower()}_token": name for name in SPECIALS},
        }
        _save(
            directory,
            {
                "vocab.txt": "".join(piece + "\n" for piece in self.vocabulary).encode(),
                "tokenizer.json": rust.to_str(pretty=True).encode(),
            },
            {**config, "options": self.options, "sha256": self.sha256},
        )

    def vocabulary_ids(self) -> dict[str, int]:
        return {piece: number for number, piece in enumerate(self.vocabulary)}


class _WordCache(dict):
    """A word between white space -> its ids as int32 bytes, asked of the Rust tokenizer once.

    White space ends a word in BERT's rules, and so does each mark of punctuation, which is a word of its own: the ids of a
    text are those of its words, one after the other. Words repeat: a look-up costs a tenth of tokenizing anew. Bounded: the
    cache begins again when it is full.
    """

    MAX_BYTES = 128 << 20
    MAX_CHARS = 64  # longer words hardly come back

    def __init__(self, rust: tokenizers.Tokenizer, lower_case: bool):
        super().__init__()
        self._rust, self._lower_case, self._bytes = rust, lower_case, 0

    def __missing__(self, word: str) -> bytes:
        core = word.strip(string.punctuation)
        if core and core != word:  # so that 'end.' and '"end' are new words less often
            start = word.index(core)
            ids = b"".join(map(self.__getitem__, (*word[:start], core, *word[start + len(core) :])))
        else:
            # str.lower is BERT's own; Rust lowers char by char, and so takes the wrong sigma at the end of a word.
            text = word.lower() if self._lower_case else word
            ids = np.array(self._rust.encode(text, add_special_tokens=False).ids, np.int32).tobytes()
        if len(word) <= self.MAX_CHARS:
            if self._bytes > self.MAX_BYTES:
                self.clear()
                self._bytes = 0
            self[word] = ids
            self._bytes += 200 + len(word) + len(ids)
        return ids


def _check_vocabulary(vocabulary: Sequence[str], ids: dict[str, int]) -> None:
    missing = [name for name in SPECIALS if name not in ids]
    if missing:
        raise UserError(
            f"the vocabulary has no {', '.join(missing)}: an ELECTRA vocabulary needs {', '.join(SPECIALS)}, "
            "a piece a line; add what is missing or train one"
        )
    if len(ids) != len(vocabulary):
        first = {piece: number for number, piece in reversed(list(enumerate(vocabulary)))}
        again = next(number for number, piece in enumerate(vocabulary) if first[piece] != number)
        raise UserError(
            f"the vocabulary has {vocabulary[again]!r} twice, in lines {first[vocabulary[again]] + 1} and {again + 1}: "
            "a piece has one id; remove or rename one of them"
        )


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
        self.sha256 = _digest(self.options, self._model)

    def __reduce__(self):
        return SentencePiece, (self._model,)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        # One thread: preparation runs a process on each core.
        return self._processor.encode(list(texts), return_type="numpy", num_threads=1)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        return [self.vocabulary[number] for number in ids]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.pieces(ids)).replace("▁", " ").strip()

    def save(self, directory) -> None:
        _save(directory, {"spm.model": self._model}, {"options": self.options, "sha256": self.sha256})


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


def train_wordpiece(texts: Iterable[str], vocab_size: int, *, lower_case: bool = True, strip_accents: bool | None = None) -> WordPiece:
    """Trains on the texts: see vocabulary.train_wordpiece. The vocabulary is smaller than asked for if the text gives less."""
    strip_accents = lower_case if strip_accents is None else strip_accents
    return WordPiece(training.train_wordpiece(texts, vocab_size, lower_case, strip_accents), lower_case, strip_accents)


def train_sentencepiece(texts: Iterable[str], vocab_size: int, *, model_type: str = "unigram", lower_case: bool = False) -> SentencePiece:
    """Trains on the texts: see vocabulary.train_sentencepiece. `model_type` is "unigram" or "bpe"."""
    return SentencePiece(training.train_sentencepiece(texts, vocab_size, model_type, lower_case))


CONFIG = "tokenizer_config.json"


def load(path, *, lower_case: bool | None = None, strip_accents: bool | None = None) -> Tokenizer:
    """Reads a folder that `save` wrote or that Hugging Face did, a BERT vocab.txt, a tokenizer.json, or a SentencePiece .model.

    A vocab.txt does not say how text is lowered: `lower_case=None` takes it as uncased if no piece has a capital. Where the
    file says it, another value is a UserError; so is a file that lacks a special token, or is none of these.
    """
    path, config, wishes = Path(path), {}, {"lower_case": lower_case, "strip_accents": strip_accents}
    try:
        if path.is_dir():
            config, path = _open_folder(path)
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"tokenizer {path}: {error.strerror or error}: name a folder, vocab.txt, or .model that exists") from None
    try:
        if path.suffix == ".txt":
            lower_case = config.get("do_lower_case", lower_case)
            strip_accents = config.get("strip_accents", strip_accents)
            tokenizer = _from_vocab(data, lower_case, strip_accents, config.get("tokenize_chinese_chars") is not False)
        elif path.suffix == ".json":
            tokenizer = _from_json(data)
        elif path.suffix == ".model":
            tokenizer = SentencePiece(data)
        else:
            raise UserError("not a vocab.txt, a tokenizer.json, a SentencePiece .model or a folder with one of them")
        for name, wanted in wishes.items():
            if wanted is not None and tokenizer.options.get(name) != wanted:
                raise UserError(f"made with {name}={tokenizer.options.get(name)}, not {wanted}: leave the option out")
        if config.get("sha256", tokenizer.sha256) != tokenizer.sha256:
            raise UserError(f"its files do not fit the hash in {CONFIG}: they were changed or damaged; make them anew")
    except UserError as error:
        raise UserError(f"tokenizer {path}: {error}") from None
    return tokenizer


def _open_folder(folder: Path) -> tuple[dict, Path]:
    try:
        config = json.loads((folder / CONFIG).read_bytes()) if (folder / CONFIG).exists() else {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"tokenizer {folder / CONFIG} is not JSON ({error}): make the folder anew") from None
    if not isinstance(config, dict):
        raise UserError(f"tokenizer {folder / CONFIG} is no JSON object: make the folder anew")
    for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
        if not isinstance(config.get(name), bool | None):
            raise UserError(f"tokenizer {folder / CONFIG}: {name} is {config[name]!r}: it must be true or false")
    # A vocab.txt does not say how text is lowered: where the config does not either, tokenizer.json does.
    for pattern in ("*.model", "vocab.txt", "tokenizer.json") if "do_lower_case" in config else ("*.model", "tokenizer.json", "vocab.txt"):
        for path in sorted(folder.glob(pattern)):
            return config, path
    raise UserError(f"tokenizer {folder}: no vocab.txt, tokenizer.json or .model in this folder: name one that has one")


def _from_vocab(data: bytes, lower_case: bool | None, strip_accents: bool | None, chinese_chars: bool) -> WordPiece:
    try:
        vocabulary = [line.strip() for line in data.decode().rstrip().split("\n")]
    except UnicodeDecodeError:
        raise UserError("not UTF-8 text: a vocab.txt has a piece a line") from None
    if lower_case is None:
        lower_case = not any(piece != piece.lower() for piece in vocabulary if not piece.startswith("["))
    return WordPiece(vocabulary, lower_case, strip_accents, chinese_chars)


def _from_json(data: bytes) -> WordPiece:
    """A tokenizer.json of BERT's kind. Its own limit on a word's length is not kept: see MAX_WORD_CHARS."""
    try:
        fields = json.loads(data)
        model, normalizer, before = fields["model"], fields["normalizer"], fields["pre_tokenizer"]
        vocabulary = sorted(model["vocab"], key=model["vocab"].get)
        kinds = model.get("type", "WordPiece"), normalizer["type"], before["type"]
        as_in_bert = (
            kinds == ("WordPiece", "BertNormalizer", "BertPreTokenizer")
            and (model["unk_token"], model["continuing_subword_prefix"]) == ("[UNK]", "##")
            and normalizer["clean_text"]
            and sorted(model["vocab"].values()) == list(range(len(vocabulary)))
        )
        added = {token["content"] for token in fields.get("added_tokens") or []}
        lower_case, strip_accents = normalizer.get("lowercase"), normalizer.get("strip_accents")
        chinese_chars = bool(normalizer["handle_chinese_chars"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        as_in_bert = False
    if not as_in_bert:
        raise UserError("not a tokenizer.json of BERT's kind: give BERT's vocab.txt or a SentencePiece .model")
    if foreign := added - set(vocabulary):
        raise UserError(f"its added token {min(foreign)!r} is not in the vocabulary: put it there, or leave it out")
    return WordPiece(vocabulary, lower_case, strip_accents, chinese_chars)


def _digest(options: dict, vocabulary: bytes) -> str:
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode() + b"\0" + vocabulary).hexdigest()


def _save(directory, files: dict[str, bytes], config: dict) -> None:
    """Each file by rename; the config last, with the hash that `load` compares."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config_bytes = json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"
    for name, data in {**files, CONFIG: config_bytes}.items():
        temporary = directory / f".{name}.{os.getpid()}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, directory / name)
        finally:
            temporary.unlink(missing_ok=True)

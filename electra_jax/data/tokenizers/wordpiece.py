"""WordPiece: BERT's vocabulary of pieces of words, where `##` begins a piece that goes on with a word.

How text is cut into words stands in words.py, how a vocabulary is trained in wordpiece_training.py.
"""

import json
import os
import string
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import decoders, processors

from electra_jax.cli import UserError
from electra_jax.data.tokenizers.base import SPECIALS, digest, save_files
from electra_jax.data.tokenizers.wordpiece_training import train_vocabulary
from electra_jax.data.tokenizers.words import MAX_WORD_CHARS, WORD, bert_rules, piece_spans, split_words

FILES = ("vocab.txt", "tokenizer.json")
ENDINGS = {".txt": "vocab.txt", ".json": "tokenizer.json"}


class WordPiece:
    """BERT's BasicTokenizer and WordpieceTokenizer: google-research/electra, model/tokenization.py.

    The vocabulary's order is the ids. `strip_accents=None` follows `lower_case`, as in BERT. `chinese_chars`: each Chinese
    character is a word by itself, which some models of Japanese and Korean switch off.
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
        self.sha256 = digest(self.options, "\n".join(self.vocabulary).encode())
        self._rust = bert_rules(ids, self.lower_case, self.strip_accents, chinese_chars)
        self._ids_of_word = _WordCache(self._encode_word)
        self._spans_of_word = _WordCache(self._find_pieces)

    def __reduce__(self):  # a copy for another process goes without the cache
        return WordPiece, (self.vocabulary, self.lower_case, self.strip_accents, self.chinese_chars)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        ids = self._ids_of_word.__getitem__
        return [np.frombuffer(b"".join(map(ids, split_words(text))), np.int32) for text in texts]

    def encode_with_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """See `Tokenizer`, and words.piece_spans for what a span holds."""
        rows = []
        for text, ids in zip(texts, self.encode_batch(texts), strict=True):
            words = list(WORD.finditer(text))
            found = [self._spans_of_word[word[0]] for word in words]
            spans = np.frombuffer(b"".join(found), np.int32).reshape(-1, 2)
            begins = np.array([word.start() for word in words], np.int32)
            rows.append((ids, spans + np.repeat(begins, [len(each) // 8 for each in found])[:, None]))
        return rows

    def _encode_word(self, word: str) -> bytes:
        core = word.strip(string.punctuation)
        if core and core != word:  # 'end.' and '"end' take the ids of 'end' from the cache
            start = word.index(core)
            return b"".join(map(self._ids_of_word.__getitem__, (*word[:start], core, *word[start + len(core) :])))
        # BERT lowers with str.lower. Rust lowers character by character, which gives the wrong sigma at the end of a Greek word.
        text = word.lower() if self.lower_case else word
        return np.array(self._rust.encode(text, add_special_tokens=False).ids, np.int32).tobytes()

    def _find_pieces(self, word: str) -> bytes:
        return np.array(piece_spans(self._rust, word, self.lower_case, self.strip_accents), np.int32).tobytes()

    def pieces(self, ids: Iterable[int]) -> list[str]:
        return [self.vocabulary[number] for number in ids]

    def decode(self, ids: Iterable[int]) -> str:
        return decoders.WordPiece().decode(self.pieces(ids))

    def save(self, directory: str | os.PathLike) -> None:
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
        files = {
            "vocab.txt": "".join(piece + "\n" for piece in self.vocabulary).encode(),
            "tokenizer.json": rust.to_str(pretty=True).encode(),
        }
        save_files(directory, files, self, config)

    def vocabulary_ids(self) -> dict[str, int]:
        return {piece: number for number, piece in enumerate(self.vocabulary)}


class _WordCache(dict):
    """What `compute` gives for words between white space, int32 as bytes; it is asked for words that are not here yet.

    By BERT's rules white space ends a word, and each mark of punctuation is a word of its own. So the ids of a text are those of its
    words, one after the other, and because words repeat, looking them up is much faster than tokenizing the text (docs/speed.md).
    When the cache is full it begins again, which bounds its memory.
    """

    MAX_BYTES = 128 << 20
    MAX_CHARS = 64  # longer words hardly ever repeat

    def __init__(self, compute: Callable[[str], bytes]):
        super().__init__()
        self._compute, self._bytes = compute, 0

    def __missing__(self, word: str) -> bytes:
        data = self._compute(word)
        if len(word) <= self.MAX_CHARS:
            if self._bytes > self.MAX_BYTES:
                self.clear()
                self._bytes = 0
            self[word] = data
            self._bytes += 200 + len(word) + len(data)
        return data


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


def train_wordpiece(texts: Iterable[str], vocab_size: int, *, lower_case: bool = True, strip_accents: bool | None = None) -> WordPiece:
    """Trains on the texts: see train_vocabulary. The vocabulary is smaller than asked for if the text gives less."""
    strip_accents = lower_case if strip_accents is None else strip_accents
    return WordPiece(train_vocabulary(texts, vocab_size, lower_case, strip_accents), lower_case, strip_accents)


def _train(texts: Iterable[str], vocab_size: int, *, lower_case: bool | None, strip_accents: bool | None) -> WordPiece:
    return train_wordpiece(texts, vocab_size, lower_case=lower_case is not False, strip_accents=strip_accents)


TRAINED = {"wordpiece": _train}


def find(folder: Path, config: dict) -> Path | None:
    # A vocab.txt does not say how text is lowered: where the config does not either, tokenizer.json does.
    names = FILES if "do_lower_case" in config else reversed(FILES)
    return next((folder / name for name in names if (folder / name).exists()), None)


def read(path: Path, data: bytes, config: dict, lower_case: bool | None, strip_accents: bool | None) -> WordPiece:
    if path.suffix == ".json":
        return _from_json(data)
    lower_case, strip_accents = config.get("do_lower_case", lower_case), config.get("strip_accents", strip_accents)
    return _from_vocab(data, lower_case, strip_accents, config.get("tokenize_chinese_chars") is not False)


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

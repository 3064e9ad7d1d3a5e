"""BERT's rules for words, and the training of vocabularies: text -> WordPiece pieces, or a SentencePiece model.

The same texts give the same vocabulary, in every run and process.
"""

import io
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from electra_jax.cli import UserError

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # a trained vocabulary begins with them, in this order
MAX_WORD_CHARS = 200  # google-research/electra, model/tokenization.py: a longer word is [UNK]

# Control characters that BERT deletes, joining what stands beside them, and at which str.split would cut.
_DELETED = re.compile("[\x0b\x0c\x1c-\x1f\x85]")


def split_words(text: str) -> list[str]:
    """The text's words between white space: BERT's tokens of a text are those of its words, one after the other."""
    return _DELETED.sub("", text).split()


def bert_rules(ids: dict[str, int], lower_case: bool, strip_accents: bool, chinese_chars: bool = True) -> tokenizers.Tokenizer:
    """No special tokens are added: text can then not name one."""
    rust = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARS))
    rust.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese_chars, strip_accents=strip_accents, lowercase=lower_case
    )
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.WordPiece()
    return rust


MAX_DISTINCT_WORDS = 2_000_000  # counted in training, about 0.4 GB; beyond it the rarest are forgotten
MIN_ALPHABET_COVERAGE = 0.995


def train_wordpiece(texts: Iterable[str], vocab_size: int, lower_case: bool, strip_accents: bool) -> list[str]:
    """Trains a vocabulary of at most `vocab_size` pieces: fewer where no pair of pieces occurs twice any more.

    Returns the pieces in the order of their ids. The alphabet takes at most half of them: the most frequent characters, of
    equally frequent ones the lower code point; words with others become [UNK]. UserError if more than 0.5% of the text's
    characters have no piece then. Memory is bounded by the distinct words, of which the rarest are forgotten if need be.
    """
    counts = _count_words(texts, bert_rules({"[UNK]": 0}, lower_case, strip_accents), lower_case)
    alphabet, characters = _alphabet(counts, vocab_size)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        # The trainer numbers its alphabet in the random order of a hash map, and breaks ties by number. Given as special
        # tokens the characters have fixed numbers. In the tokenizer made from the vocabulary they are not special.
        special_tokens=[*SPECIALS, *alphabet],
    )
    rust = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rust.train_from_iterator(_repeated(counts, characters), trainer)
    ids = rust.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def _count_words(texts: Iterable[str], rust: tokenizers.Tokenizer, lower_case: bool) -> Counter:
    """How often each word, as WordPiece meets it, stands in the texts."""
    raw, rarest = Counter(), 0
    for text in texts:
        raw.update(split_words(text))
        while len(raw) > MAX_DISTINCT_WORDS:
            rarest += 1
            raw = Counter({word: count for word, count in raw.items() if count > rarest})
    words = Counter()
    for word, count in raw.items():
        normal = rust.normalizer.normalize_str(word.lower() if lower_case else word)
        for part, _ in rust.pre_tokenizer.pre_tokenize_str(normal):
            if len(part) <= MAX_WORD_CHARS:
                words[part] += count
    if not words:
        raise UserError("there is no word in the text to train a vocabulary on: is the input empty?")
    return words


def _alphabet(words: Counter, vocab_size: int) -> tuple[list[str], set[str]]:
    """The pieces of one character (`c`, and `##c` where it continues a word), and the characters that they cover."""
    starting, continuing = Counter(), Counter()
    for word, count in words.items():
        starting[word[0]] += count
        for character in word[1:]:
            continuing[character] += count
    total = starting + continuing
    room, kept, covered, needed = (vocab_size - len(SPECIALS)) // 2, set(), 0, 0
    enough = MIN_ALPHABET_COVERAGE * total.total()
    for character in sorted(total, key=lambda character: (-total[character], character)):
        cost = 1 + (character in continuing)
        if cost <= room:
            room -= cost
            kept.add(character)
        else:
            room = 0  # nothing rarer takes the place of what did not fit
        if covered < enough:
            needed += cost
        covered += total[character]
    share = sum(total[character] for character in kept) / total.total()
    if share < MIN_ALPHABET_COVERAGE:
        raise UserError(
            f"a vocabulary of {vocab_size} pieces is too small for this text's alphabet: it would cover {share:.1%} of the "
            f"characters; ask for at least {2 * needed + len(SPECIALS)}"
        )
    return sorted(kept) + ["##" + character for character in sorted(kept & continuing.keys())], kept


def _repeated(words: Counter, characters: set[str]) -> Iterator[str]:
    """The counted words as text, each as often as it was counted. Their order does not matter to the trainer."""
    for word, left in words.items():
        if characters.issuperset(word):
            at_once = 1 + 4096 // len(word)
            while left > 0:
                yield (word + " ") * min(left, at_once)
                left -= at_once


MAX_TRAINING_BYTES = 256 << 20  # SentencePiece holds its training text in memory, some twenty times over


def train_sentencepiece(texts: Iterable[str], vocab_size: int, model_type: str, lower_case: bool) -> bytes:
    """Trains a model of at most `vocab_size` pieces, `model_type` "unigram" or "bpe".

    Of more than 256 MiB of text a sample is taken, line by line, by a hash of the line. UserError if `vocab_size` is too
    small for the alphabet.
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
            num_threads=16,  # a constant: sums over threads are rounded by their number
            max_sentence_length=1 << 20,
            minloglevel=2,
        )
    except RuntimeError as error:
        condition, _, reason = str(error).rpartition("]")  # source.cc(line) [condition] reason
        reason = reason.strip() or condition[condition.find("[") + 1 :]
        raise UserError(f"SentencePiece cannot train {vocab_size} pieces on this text: {reason} (another vocabulary size may do)") from None
    return written.getvalue()


def _sample_lines(texts: Iterable[str], max_bytes: int) -> list[str]:
    """Lines, the long ones cut at white space; when there are too many, those whose hash is in the lower half, and so on."""
    lines, size, limit = [], 0, 1 << 32
    for text in texts:
        # SentencePiece passes over each line that holds U+2585, which stands for the unknown in it.
        for match in re.finditer(r"\S.{0,999}(?=\s|$)|\S{1,1000}", text.replace("\u2585", " ")):
            data = match[0].encode()
            if zlib.crc32(data) < limit:
                lines.append(match[0])
                size += len(data)
        while size > max_bytes:
            limit //= 2
            lines = [line for line in lines if zlib.crc32(line.encode()) < limit]
            size = sum(len(line.encode()) for line in lines)
    return lines

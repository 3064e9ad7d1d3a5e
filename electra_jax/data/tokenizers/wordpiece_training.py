"""The training of a WordPiece vocabulary. The same texts give the same vocabulary, in every run and process."""

from collections import Counter
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from electra_jax.cli import UserError
from electra_jax.data.tokenizers.base import SPECIALS, AlphabetTooLarge
from electra_jax.data.tokenizers.words import MAX_WORD_CHARS, bert_rules, portions

MAX_DISTINCT_WORDS = 2_000_000  # counted in training; beyond it the rarest are forgotten, which bounds the memory
MIN_ALPHABET_COVERAGE = 0.995


def train_vocabulary(texts: Iterable[str], vocab_size: int, lower_case: bool, strip_accents: bool) -> list[str]:
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
        # The trainer numbers its alphabet in the random order of a hash map, and breaks ties by these numbers. Characters that are
        # given as special tokens have fixed numbers. (In the tokenizer made from the vocabulary they are not special.)
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
        for words in portions(text):
            raw.update(words)
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
        raise AlphabetTooLarge(
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
